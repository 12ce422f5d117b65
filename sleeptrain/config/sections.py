"""From the merged tree to frozen sections: pydantic checks the leaves; every error has path, value and source."""

import dataclasses
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from difflib import get_close_matches
from functools import cache
from inspect import signature
from typing import Any, Literal, get_args, get_origin

from sleeptrain.config.names import all_names, describe, element_type, fields_of, is_section, members, nearest, variant
from sleeptrain.config.tree import FAILED, KeyPath, Node, claim, escape, items, plain, select
from sleeptrain.sizes import number_hint


@dataclass(frozen=True)
class Problem:
    """Something wrong with one field of a section, as its `problems(self) -> list[Problem]` reports it."""

    field: str
    """Dotted path of the field, relative to the section; empty for the section itself."""
    message: str
    """What is wrong and what to do about it; loading adds the value and its source."""


def defaults_of(schema: type) -> dict[str, Any]:
    """The plain defaults of a schema's fields that have one. Raises TypeError for types that recipes cannot hold."""
    result: dict[str, Any] = {}
    for item in filter(lambda item: item.init, dataclasses.fields(schema)):
        kind = fields_of(schema)[item.name]
        describe(kind)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if default is not MISSING or is_section(kind):
            result[item.name] = defaults_of(kind) if default is MISSING else plain(default, escape)
    return result


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind, config=None if is_section(kind) else {"allow_inf_nan": False})


@dataclass(frozen=True)
class SectionReader:
    """Reads nodes as sections. A value is FAILED, and an error added to `errors`, if it or a value in it is wrong."""

    schema: type
    errors: list[str]
    refused: list[str] = field(default_factory=list)
    """The dotted paths of values that a section's `problems` refuse."""

    def value(self, kind: Any, node: Node, path: KeyPath = ()) -> Any:
        """The value of the node at `path` as a `kind`, or FAILED."""
        if is_section(meant := variant(kind, node)):
            return self._section(meant, node, path)
        data = plain(node)
        if meant is not None:
            children = {key: self.value(element_type(meant, key), child, (*path, key)) for key, child in items(node)}
            data = children if isinstance(data, dict) else (get_origin(meant) or meant)(children.values())
            if FAILED in children.values():
                return FAILED
        # 1e3 may stand for a whole number, 010 for text.
        whole = int(data) if isinstance(data, float) and data.is_integer() else data
        for choice in (data, whole, node.text if node.text and data is not None else data):
            try:
                return _adapter(kind).validate_python(choice, strict=True)
            except ValueError:
                continue
        options = [str(option) for one in members(kind) if get_origin(one) is Literal for option in get_args(one)]
        wanted = f"a list of {len(get_args(meant))}" if isinstance(data, tuple) else describe(kind)
        near = nearest(data, options) or number_hint(data, wanted) if isinstance(data, str) else ""
        return FAILED if data is FAILED else self._fail(f"{claim(path, node)}: expected {wanted}{near}")

    def _section(self, kind: type, node: Node, path: KeyPath) -> Any:
        known = fields_of(kind)
        for key in [key for key in node.value if key not in known]:
            self._unknown(known, (*path, key), node.value[key])
        values = {key: self.value(known[key], node.value[key], (*path, key)) for key in known if key in node.value}
        for name, parameter in signature(kind).parameters.items():
            if parameter.default is parameter.empty and name not in values:
                values[name] = self._fail(f"{'.'.join((*path, name))}: missing; expected {describe(known[name])}")
        if FAILED in values.values():
            return FAILED
        told = f"{'.'.join(path) or 'recipe'} ({node.source})"
        try:
            section = kind(**values)
        except ValueError as error:
            return self._fail(f"{told}: {error}")
        for problem in getattr(section, "problems", list)():
            inner = problem.field.split(".") if problem.field else []
            found = Node(select(section, inner), getattr(select(node, inner), "source", "default"))
            self.refused.append(".".join((*path, *inner)))
            self._fail(f"{claim((*path, *inner), found) if inner else told}: {problem.message}")
        return section

    def _unknown(self, siblings: Iterable[str], path: KeyPath, node: Node) -> None:
        """Reports a key that a section does not have, with one of its siblings or with names that end alike."""
        names = {".".join(name): name[-1] for name in all_names(self.schema)}
        near = [".".join((*path[:-1], name)) for name in get_close_matches(path[-1], siblings, 1, 0.7)]
        alike = get_close_matches(path[-1], names.values(), 1, 0.8)
        near = near or get_close_matches(".".join(path), [name for name in names if names[name] in alike], 3, 0)
        self._fail(f"{claim(path, node)}: unknown key" + (f"; did you mean {' or '.join(near)}?" if near else ""))

    def _fail(self, error: str) -> Any:
        self.errors.append(error)
        return FAILED
