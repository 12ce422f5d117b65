"""From the merged tree to frozen sections: pydantic checks and builds them; every error is told by path, value and source."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin

from sleeptrain.config.names import all_names, describe, did_you_mean, fields_of, is_section, members, nearest
from sleeptrain.config.tree import KeyPath, Tree, items, plain, select, show

FAILED: Any = object()
"""Stands for a value of a wrong type, which is reported already."""


def defaults_of(schema: type) -> dict[str, Any]:
    """The plain default values of a schema, without fields that have none. Raises TypeError for types recipes cannot hold."""
    result: dict[str, Any] = {}
    for item in [item for item in dataclasses.fields(schema) if item.init]:
        kind = fields_of(schema)[item.name]
        describe(kind)
        if item.default_factory is not dataclasses.MISSING:
            result[item.name] = plain(item.default_factory())
        elif item.default is not dataclasses.MISSING:
            result[item.name] = plain(item.default)
        elif is_section(kind):
            result[item.name] = defaults_of(kind)
    return result


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@dataclass
class SectionReader:
    """Reads a tree as a schema. Errors are added to the tree's, and the paths without a good value to `failed`."""

    schema: type
    tree: Tree
    failed: set[KeyPath]
    refused: set[KeyPath] = field(default_factory=set)
    """The paths of values that a section's `problems` refuse."""

    def value(self, kind: Any, data: Any, path: KeyPath) -> Any:
        """The plain value at `path` as a `kind`, or FAILED; a section in part has the fields that are good."""
        from pydantic import ValidationError

        if path in self.failed:
            return FAILED
        meant = self._meant(kind, data, path)
        if is_section(meant):
            return self._section(meant, data, path)
        if meant is not None:
            children = {key: self.value(_inner(meant, key), child, (*path, key)) for key, child in items(data)}
            if self._hurt(path):
                return self._fail(path)
            origin = get_origin(meant) or meant
            data = children if origin is dict else origin(children.values())
        # 1e3 may stand for a whole number, 010 for text.
        whole = int(data) if isinstance(data, float) and data.is_integer() else data
        text = self.tree.places[path].text if path in self.tree.places and data is not None else None
        for choice in (data, whole, text or data):
            try:
                return _adapter(kind).validate_python(choice, strict=True)
            except ValidationError:
                continue
        options = [str(option) for one in members(kind) if get_origin(one) is Literal for option in get_args(one)]
        near = nearest(data, options) if isinstance(data, str) else ""
        wanted = f"a list of {len(get_args(meant))}" if isinstance(data, tuple) else describe(kind)
        return self._fail(path, f"{self.tree.claim(path)}: expected {wanted}{near}")

    def _section(self, kind: type, data: dict[str, Any], path: KeyPath) -> Any:
        from pydantic import ValidationError

        known = fields_of(kind)
        for key in [key for key in data if key not in known]:
            self._unknown(known, (*path, key))
        read = {name: self.value(known[name], data[name], (*path, name)) for name in known if name in data}
        values = {name: value for name, value in read.items() if value is not FAILED}
        try:
            section = _adapter(kind).validate_python(values)
        except ValidationError as error:
            for one in error.errors():
                name = str(one["loc"][-1]) if one["loc"] else ""
                if one["type"] == "missing" and name not in read:
                    told = f"{'.'.join((*path, name))}: missing; expected {describe(known[name])}"
                    self._fail((*path, name), told if self.tree.complete else "")
                elif one["type"] != "missing" and not self._hurt(path):
                    return self._fail(path, f"{self._name(path)}: {one['ctx']['error']}")
        if self._hurt(path):
            section = object.__new__(kind)
            for name, value in values.items():
                object.__setattr__(section, name, value)
            return section
        for problem in getattr(section, "problems", list)():
            inner = tuple(problem.field.split(".")) if problem.field else ()
            place, source = (*path, *inner), self.tree.source((*path, *inner))
            told = f"{'.'.join(place)} = {show(select(section, inner))} ({source})" if inner else self._name(path)
            self.refused.add(place)
            self.tree.errors += [f"{told}: {problem.message}"] if self.tree.complete or source != "default" else []
        return section

    def _meant(self, kind: Any, data: Any, path: KeyPath) -> Any:
        """The member of a type that a mapping or a list is meant as; None for scalars, or if no single one can be told.

        A newer layer that names another variant leaves the keys of older layers behind: they are taken out of `data`.
        """
        shapes = (list, tuple) if isinstance(data, list) else (dict,) if isinstance(data, dict) else ()
        fitting = [one for one in members(kind) if (dict if is_section(one) else get_origin(one) or one) in shapes]
        fitting = list(filter(is_section, fitting)) or fitting
        if len(fitting) < 2 or isinstance(data, list):
            return fitting[0] if len(fitting) == 1 else None
        layers = self.tree.places.maps
        ages = {key: [*((*path, key) in layer for layer in layers), True].index(True) for key in data}
        meant: Any = None
        kept: set[str] = set()
        for age in sorted(set(ages.values()), reverse=True):
            keys = {key for key in data if ages[key] == age}
            shared = {variant: len(keys & fields_of(variant).keys()) for variant in fitting}
            best = max(fitting, key=lambda variant: shared[variant])
            if shared[best] > shared.get(meant, 0):
                meant, kept = best, set() if meant else kept
            kept |= keys
        for key in data.keys() - kept:
            del data[key]
        return meant

    def _unknown(self, siblings: Iterable[str], path: KeyPath) -> None:
        """Reports a key that a section does not have, by the longest path that is one value."""
        depth, value = len(path) - 1, select(self.tree.data, path)
        while isinstance(value, dict) and len(value) == 1:
            path, value = (*path, *value), next(iter(value.values()))
        # A slip among the siblings comes first, else the same or a similar last word elsewhere.
        names = {".".join(name): name[-1] for name in all_names(self.schema)}
        slips = get_close_matches(path[depth], siblings, 1, 0.7)
        near = [".".join((*path[:depth], name, *path[depth + 1 :])) for name in slips]
        near = [name for name in near if depth == len(path) - 1 or name in names]
        leaf = get_close_matches(path[-1], names.values(), 1, 0.8)
        near = near or get_close_matches(".".join(path), [name for name in names if names[name] in leaf], 3, 0)
        self.tree.errors.append(f"{self.tree.claim(path)}: unknown key{did_you_mean(near)}")

    def _fail(self, path: KeyPath, error: str = "") -> Any:
        self.failed.add(path)
        self.tree.errors += [error] if error else []
        return FAILED

    def _hurt(self, path: KeyPath) -> bool:
        """Whether something failed at a path or below it."""
        return any(failed[: len(path)] == path for failed in self.failed)

    def _name(self, path: KeyPath) -> str:
        return f"{'.'.join(path) or 'recipe'} ({self.tree.source(path)})"


def _inner(kind: Any, key: str) -> Any:
    """The type of an element of a list, a tuple or a mapping."""
    arguments = [argument for argument in get_args(kind) or (Any,) if argument is not Ellipsis]
    return arguments[-1 if get_origin(kind) is dict else min(int(key), len(arguments) - 1)]
