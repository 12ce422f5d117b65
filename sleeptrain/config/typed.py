"""From the untyped tree to frozen sections: every value is converted to its field's type, and every error is collected."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from sleeptrain.config.kinds import (
    FAILED,
    default_of,
    describe,
    eagerness,
    field_names,
    is_union,
    options,
    required,
    scalar,
    sections,
    shape_of,
)
from sleeptrain.config.names import all_names, nearest
from sleeptrain.config.tree import Node, join, node_items, plain, show, without_nodes


def defaults_of(schema: type) -> dict[str, Any]:
    """The plain default values of a schema, without the fields that have none."""
    hints = typing.get_type_hints(schema)
    result: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        default = default_of(item, None)
        inner = sections(hints[item.name])
        if default is not dataclasses.MISSING:
            result[item.name] = plain(default)
        elif len(inner) == 1:
            result[item.name] = defaults_of(inner[0])
    return result


@dataclass
class Converter:
    """Converts a tree to a schema. Errors are added to `errors`, and their dotted paths to `failed`."""

    schema: type
    errors: list[str]
    complete: bool = True
    """Whether all files were read: if not, a missing value or a wrong default is no news."""
    failed: set[str] = field(default_factory=set)

    def convert(self, kind: Any, node: Node, path: str, base: Any = None) -> Any:
        """The value of a node as a `kind`, or FAILED. `base` is the default value, whose fields a section falls back on."""
        if node.broken:
            return self.fail(path)
        if kind is Any:
            return without_nodes(node)
        if is_union(kind):
            return self._union(kind, node, path, base)
        shape = shape_of(kind)
        if shape != node.shape:
            return self._wrong(kind, node, path)
        if is_dataclass(kind) and isinstance(kind, type):
            return self.section(kind, node, path, base if isinstance(base, kind) else None)
        if shape == "mapping":
            inner = (get_args(kind) or (str, Any))[1]
            return self._children(dict, [(key, inner, child) for key, child in node.value.items()], path)
        if shape == "list":
            return self._list(kind, node, path)
        value = scalar(kind, node)
        return self._wrong(kind, node, path) if value is FAILED else value

    def section(self, kind: type, node: Node | None, path: str, base: Any = None) -> Any:
        """A section from its node (None: from defaults alone); one that failed holds the fields that did not."""
        children = node.value if node is not None else {}
        known = field_names(kind)
        for key in children:
            if key not in known:
                self._unknown(children[key], path, key, known)
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        for item in dataclasses.fields(kind):
            if item.init:
                value = self._field(hints[item.name], item, children.get(item.name), join(path, item.name), base)
                values[item.name] = value
        return self._finish(kind, values, node, path)

    def _field(self, kind: Any, item: dataclasses.Field[Any], node: Node | None, path: str, base: Any) -> Any:
        default = default_of(item, base)
        if node is not None:
            return self.convert(kind, node, path, default)
        if is_dataclass(default) and not isinstance(default, type):
            return self.section(type(default), None, path, default)
        if default is not dataclasses.MISSING:
            return default
        if is_dataclass(kind) and isinstance(kind, type):
            return self.section(kind, None, path)
        if self.complete:
            self.errors.append(f"{path}: missing; expected {describe(kind)}")
        return self.fail(path)

    def _finish(self, kind: type, values: dict[str, Any], node: Node | None, path: str) -> Any:
        source = node.source if node is not None else "default"
        if any(value is FAILED or isinstance(value, Partial) for value in values.values()):
            kept = {name: value for name, value in values.items() if value is not FAILED}
            return Partial(kind, kept)
        try:
            result = kind(**values)
        except ValueError as error:
            self.errors.append(f"{path or 'recipe'} ({source}): {error}")
            return self.fail(path)
        report: Callable[[], list[Any]] | None = getattr(result, "problems", None)
        for problem in report() if report is not None else []:
            place = join(path, problem.field)
            claim, origin = _claim(result, node, problem.field, place, source)
            if self.complete or origin != "default":
                self.errors.append(f"{claim}: {problem.message}")
            self.fail(place)
        return result

    def _union(self, kind: Any, node: Node, path: str, base: Any) -> Any:
        members = [member for member in get_args(kind) if member is not type(None)]
        if node.value is None:
            return None if len(members) < len(get_args(kind)) else self._wrong(kind, node, path)
        fitting = [member for member in members if member is Any or shape_of(member) == node.shape]
        if node.shape == "scalar":
            for member in sorted(fitting, key=lambda member: eagerness(member, node)):
                value = without_nodes(node) if member is Any else scalar(member, node)
                if value is not FAILED:
                    return value
            return self._wrong(kind, node, path)
        variants = [member for member in fitting if isinstance(member, type) and is_dataclass(member)]
        if variants:
            return self._variant(kind, variants, node, path, base)
        for member in fitting:
            trial = Converter(self.schema, [], self.complete)
            trial.convert(member, node, path, base)
            if not trial.errors or len(fitting) == 1:
                return self.convert(member, node, path, base)
        return self._wrong(kind, node, path)

    def _variant(self, kind: Any, variants: list[type], node: Node, path: str, base: Any) -> Any:
        """The variant whose keys fit; a newer layer that names another variant leaves the older layers' keys behind."""
        for layer in sorted({child.layer for child in node.value.values()} or {0}):
            keys = {key: child for key, child in node.value.items() if child.layer >= layer}
            for variant in variants:
                default = base if isinstance(base, variant) else None
                if set(required(variant, default)) <= set(keys) <= set(field_names(variant)):
                    return self.section(variant, Node(keys, node.source, node.layer), path, default)
        shared = {variant: len(set(node.value) & set(field_names(variant))) for variant in variants}
        best = max(variants, key=lambda variant: shared[variant])
        if len(variants) == 1 or shared[best]:
            return self.section(best, node, path, base if isinstance(base, best) else None)
        return self._wrong(kind, node, path)

    def _list(self, kind: Any, node: Node, path: str) -> Any:
        arguments = get_args(kind) or (Any, ...)
        if (get_origin(kind) or kind) is list or arguments[-1] is Ellipsis:
            kinds = [arguments[0]] * len(node.value)
        elif len(arguments) != len(node.value):
            self.errors.append(f"{_value(node, path)}: expected a list of {len(arguments)}")
            return self.fail(path)
        else:
            kinds = list(arguments)
        parts = [(str(index), inner, child) for index, (inner, child) in enumerate(zip(kinds, node.value, strict=True))]
        finish = list if (get_origin(kind) or kind) is list else tuple
        return self._children(lambda values: finish(values.values()), parts, path)

    def _children(self, finish: Callable[[dict[str, Any]], Any], parts: list[tuple[str, Any, Node]], path: str) -> Any:
        values = {key: self.convert(kind, child, join(path, key)) for key, kind, child in parts}
        if any(value is FAILED or isinstance(value, Partial) for value in values.values()):
            return self.fail(path)
        return finish(values)

    def _unknown(self, node: Node, parent: str, key: str, siblings: list[str]) -> None:
        rest = ""
        while isinstance(node.value, dict) and len(node.value) == 1:
            ((name, node),) = node.value.items()
            rest = join(rest, name)
        hint = nearest(parent, key, rest, siblings, list(all_names(self.schema)))
        self.errors.append(f"{_value(node, join(join(parent, key), rest))}: unknown key{hint}")

    def _wrong(self, kind: Any, node: Node, path: str) -> Any:
        words = [str(option) for option in options(kind)]
        near = get_close_matches(node.value, words, n=1) if isinstance(node.value, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.errors.append(f"{_value(node, path)}: expected {describe(kind)}{hint}")
        return self.fail(path)

    def fail(self, path: str) -> Any:
        """Remembers that `path` has no good value."""
        self.failed.add(path)
        return FAILED


@dataclass(frozen=True)
class Partial:
    """A section some of whose fields could not be converted, with those that could."""

    kind: type
    values: dict[str, Any]

    def as_section(self) -> Any:
        """An instance without the missing attributes, on which rules about the present ones can be asked."""
        section: Any = object.__new__(self.kind)
        for name, value in self.values.items():
            object.__setattr__(section, name, value.as_section() if isinstance(value, Partial) else value)
        return section


def _value(node: Node, path: str) -> str:
    as_written = node.text is not None and node.text != "" and not isinstance(node.value, str)
    return f"{path} = {node.text if as_written else show(without_nodes(node))} ({node.source})"


def _claim(section: Any, node: Node | None, name: str, path: str, source: str) -> tuple[str, str]:
    """`optim.lr = -1.0 (recipe.yaml:3)` for a problem of a field, the place alone for one of the section; and the source."""
    if not name:
        return f"{path or 'recipe'} ({source})", source
    value, place = section, "default"
    for part in name.split("."):
        if isinstance(value, list | tuple):
            value = value[int(part)]
        else:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if node is not None:
            node = dict(node_items(node)).get(part)
        place = node.source if node is not None else "default"
    return f"{path} = {show(plain(value))} ({place})", place
