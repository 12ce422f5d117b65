"""From the merged tree to frozen sections: pydantic checks and builds them; every error is told by path, value and source."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_origin

from sleeptrain.config.names import all_names, describe, fields_of, is_section, members, nearest, nearest_key, options
from sleeptrain.config.tree import KeyPath, Tree, items, plain, select, show

FAILED: Any = object()
"""Stands for a value of a wrong type, which is reported already."""


def defaults_of(schema: type) -> dict[str, Any]:
    """The plain default values of a schema, without the fields that have none."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        kind = fields_of(schema).get(item.name)
        if item.default_factory is not dataclasses.MISSING:
            result[item.name] = plain(item.default_factory())
        elif item.default is not dataclasses.MISSING:
            result[item.name] = plain(item.default)
        elif is_section(kind):
            result[item.name] = defaults_of(kind)
    return {name: value for name, value in result.items() if name in fields_of(schema)}


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@dataclass
class Reader:
    """Reads a tree as a schema. Errors are added to `errors`, the paths without a good value to `failed`."""

    schema: type
    tree: Tree
    complete: bool
    """Whether all files were read: if not, a missing value or a wrong default is no news."""
    errors: list[str]
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
            children = [(key, self.value(_inner(meant, key), child, (*path, key))) for key, child in items(data)]
            if self._hurt(path):
                return self._fail(path)
            origin = get_origin(meant) or meant
            data = dict(children) if origin is dict else origin(child for _, child in children)
        for choice in self._readings(data, path):
            try:
                return _adapter(kind).validate_python(choice, strict=True)
            except ValidationError:
                continue
        near = nearest(data, map(str, options(kind))) if isinstance(data, str) else ""
        wanted = f"a list of {len(get_args(meant))}" if isinstance(data, tuple) else describe(kind)
        return self._fail(path, f"{self.tree.claim(path)}: expected {wanted}{near}")

    def _readings(self, data: Any, path: KeyPath) -> Iterator[Any]:
        """What a value may stand for: itself, 1e3 for a whole number, 010 for text."""
        yield data
        if isinstance(data, float) and data.is_integer():
            yield int(data)
        place = self.tree.places.get(path)
        if place is not None and place.text is not None and data is not None:
            yield place.text

    def _section(self, kind: type, data: dict[str, Any], path: KeyPath) -> Any:
        from pydantic import ValidationError

        known = fields_of(kind)
        for key in [key for key in data if key not in known]:
            self._unknown(known, (*path, key))
        read = {name: self.value(known[name], data[name], (*path, name)) for name in known if name in data}
        values = {name: value for name, value in read.items() if value is not FAILED}
        whole: Any = None
        try:
            whole = _adapter(kind).validate_python(values)
        except ValidationError as error:
            for one in error.errors():
                name = str(one["loc"][-1]) if one["loc"] else ""
                if one["type"] != "missing":
                    if not self._hurt(path):
                        return self._fail(path, f"{self._name(path)}: {one['ctx']['error']}")
                elif name not in read:
                    missing = f"{'.'.join((*path, name))}: missing; expected {describe(known[name])}"
                    self._fail((*path, name), missing if self.complete else "")
        if not self._hurt(path):
            self._ask(whole, path)
            return whole
        section: Any = object.__new__(kind)
        for name, value in values.items():
            object.__setattr__(section, name, value)
        return section

    def _ask(self, section: Any, path: KeyPath) -> None:
        """Adds the problems that a section reports of itself."""
        for problem in getattr(section, "problems", list)():
            inner = tuple(problem.field.split(".")) if problem.field else ()
            place, source = (*path, *inner), self.tree.source((*path, *inner))
            told = f"{'.'.join(place)} = {show(select(section, inner))} ({source})" if inner else self._name(path)
            self.refused.add(place)
            if self.complete or source != "default":
                self.errors.append(f"{told}: {problem.message}")

    def _meant(self, kind: Any, data: Any, path: KeyPath) -> Any:
        """The member of a type that a mapping or a list is meant as; None for scalars, or if no single one can be told.

        A newer layer that names another variant leaves the keys of older layers behind: they are taken out of `data`.
        """
        fitting = [member for member in members(kind) if isinstance(data, _shape(member))]
        if len(fitting) < 2 or isinstance(data, list):
            return fitting[0] if len(fitting) == 1 else None
        meant, kept = None, []
        ages = {key: self.tree.age((*path, key)) for key in data}
        for age in sorted(set(ages.values()), reverse=True):
            keys = [key for key in data if ages[key] == age]
            shared = {variant: len(set(keys) & set(fields_of(variant))) for variant in fitting}
            best = max(fitting, key=lambda variant: shared[variant])
            if shared[best] > shared.get(meant, 0):
                meant, kept = best, [] if meant is not None else kept
            kept += keys
        for key in set(data) - set(kept):
            del data[key]
        return meant

    def _unknown(self, siblings: dict[str, Any], path: KeyPath) -> None:
        """Reports a key that a section does not have, by the longest path that is one value."""
        whole, value = path, select(self.tree.data, path)
        while isinstance(value, dict) and len(value) == 1:
            ((key, value),) = value.items()
            whole = (*whole, key)
        near = nearest_key(whole, len(path) - 1, siblings, list(all_names(self.schema)))
        self.errors.append(f"{self.tree.claim(whole)}: unknown key{near}")

    def _fail(self, path: KeyPath, error: str = "") -> Any:
        self.failed.add(path)
        self.errors += [error] if error else []
        return FAILED

    def _hurt(self, path: KeyPath) -> bool:
        """Whether something failed at a path or below it."""
        return any(failed[: len(path)] == path for failed in self.failed)

    def _name(self, path: KeyPath) -> str:
        return f"{'.'.join(path) or 'recipe'} ({self.tree.source(path)})"


def _shape(kind: Any) -> Any:
    """The plain type that a section, a mapping or a list is written as."""
    origin = get_origin(kind) or kind
    return dict if is_section(kind) or origin is dict else list if origin in (list, tuple) else ()


def _inner(kind: Any, key: str) -> Any:
    """The type of an element of a list, a tuple or a mapping."""
    arguments = get_args(kind) or (Any,)
    if get_origin(kind) is not tuple or arguments[-1] is Ellipsis:
        return arguments[-1] if get_origin(kind) is dict else arguments[0]
    return arguments[min(int(key), len(arguments) - 1)]
