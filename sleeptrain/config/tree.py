"""The merged recipe: plain values with the place each was written at; how they are merged, interpolated, walked and shown."""

import dataclasses
import json
import re
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import yaml

from sleeptrain.config.scalars import Dumper, read_plain

MISSING: Any = object()
"""Stands for a value that does not exist, where None is one."""
KeyPath = tuple[str, ...]
"""Keys from the root to a value; an element of a list is its position in digits."""


class Place(NamedTuple):
    """Where a value was written, and an unquoted scalar as written: `010` and `no` are text where the field is text."""

    source: str
    text: str | None = None


@dataclass
class Tree:
    """The layers merged so far: files, then the command line; in the end defaults below them."""

    data: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    complete: bool = True
    """Whether all files were read: if not, a missing value or a wrong default is no news."""
    places: ChainMap[KeyPath, Place] = field(default_factory=ChainMap)
    """One map for each layer, the newest first: a value is of the newest layer that has its path. Defaults have no map."""

    def lay(self, data: dict[str, Any], places: dict[KeyPath, Place]) -> None:
        """Merges values over the others and adds their places to the newest layer; replaced values lose their places."""
        self.places.update(places)
        self.data = self._merge(self.data, data, ())
        for layer in self.places.maps:
            for path in [path for path in layer if path not in places and select(self.data, path, MISSING) is MISSING]:
                del layer[path]

    def over(self, defaults: dict[str, Any]) -> None:
        """Merges the tree over default values; last of all, so that a wrong value that was overridden has replaced none."""
        self.data = self._merge(defaults, self.data, ())

    def _merge(self, below: Any, above: Any, path: KeyPath) -> Any:
        """Mappings are merged key by key, `{1: x}` over a list changes an element, everything else is replaced.

        OmegaConf.merge refuses a list over a mapping, merges into what a reference refers to and cannot change an element.
        """
        if not isinstance(above, dict) or not isinstance(below, dict | list):
            return above
        if isinstance(below, dict):
            return below | {key: self._merge(below.get(key), child, (*path, key)) for key, child in above.items()}
        if not above or not all(map(str.isdecimal, above)):
            return above
        name, count = ".".join(path), len(below)
        for key in [key for key in above if int(key) >= count]:
            last = f"; the last is {name}.{count - 1}" if count else ""
            told = f"{name}.{key} = {show(above[key])} ({self.source((*path, key))}): {name} has {count} elements{last}"
            self.errors.append(f"{told}; give a longer list whole: {name}=[...]")
        return [self._merge(child, above.get(key, child), (*path, key)) for key, child in items(below)]

    def source(self, path: KeyPath) -> str:
        """`rule110-tiny.yaml:12`, `command line` or `default`."""
        return self.places.get(path, Place("default")).source

    def claim(self, path: KeyPath) -> str:
        """`optim.lr = 1e-1 (command line)`: a value as error messages name it, numbers as they were written."""
        value, place = select(self.data, path), self.places.get(path, Place("default"))
        written = place.text if place.text and not isinstance(value, str) else show(value)
        return f"{'.'.join(path)} = {written} ({place.source})"

    def interpolate(self) -> set[KeyPath]:
        """Puts values in place of references and `${oc.env:NAME}`. Returns the paths that have none, after adding errors."""
        found = [path for path, value in walk(self.data) if isinstance(value, str) and "${" in value]
        if not found:
            return set()
        from omegaconf import OmegaConf
        from omegaconf.errors import GrammarParseError, OmegaConfBaseException

        def resolve(path: KeyPath) -> Any:
            value = reduce(lambda at, key: at[int(key) if OmegaConf.is_list(at) else key], path, config)
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

        def attempt(get: Callable[[KeyPath], Any], path: KeyPath) -> list[Any]:
            try:
                return [get(path)]
            except (OmegaConfBaseException, RecursionError) as error:
                what = "not a valid interpolation" if isinstance(error, GrammarParseError) else "cannot be resolved"
                endless = isinstance(error, RecursionError)
                why = "it refers to a value that contains it" if endless else str(error).splitlines()[0]
                self.errors.append(f"{self.claim(path)}: {what}: {why}")
                put(self.data, path, None)
                return []

        # OmegaConf refuses the whole tree for one text with an open brace.
        good = [path for path in found if attempt(lambda path: OmegaConf.create([select(self.data, path)]), path)]
        config: Any = OmegaConf.create(self.data)
        values = {path: value for path in good for value in attempt(resolve, path)}
        for path, value in values.items():
            texts = {inner: part if isinstance(part, str) else None for inner, part in walk(value, path)}
            self.places.update({inner: Place(self.source(path), text) for inner, text in texts.items()})
            put(self.data, path, read_plain(value) if isinstance(value, str) else value)
        return set(found) - set(values)


def items(value: Any) -> list[tuple[str, Any]]:
    """The children of a section, a mapping or a list by name or position; of a section in part, those it has."""
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value) if item.init and hasattr(value, item.name)]
        return [(name, getattr(value, name)) for name in names]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [(str(key), child) for key, child in pairs]


def plain(value: Any, change: Callable[[str], str] = str) -> Any:
    """Sections as dicts and tuples as lists, all the way down, with changed texts."""
    if isinstance(value, list | tuple):
        return [plain(child, change) for child in value]
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
        return {key: plain(child, change) for key, child in items(value)}
    return change(value) if isinstance(value, str) else value


def escape(text: str) -> str:
    """Text that means itself when it is read back, although it looks like an interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of a value and of everything below it."""
    yield path, value
    for key, child in items(value):
        yield from walk(child, (*path, key))


def select(value: Any, path: KeyPath, default: Any = None) -> Any:
    """The value at a path; `default` where there is none."""
    for key in path:
        value = dict(items(value)).get(key, default)
    return value


def put(data: Any, path: KeyPath, value: Any) -> None:
    """Replaces the value at a path of a plain value, in place."""
    parent = select(data, path[:-1])
    parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value


def flow(value: Any) -> str:
    """A plain value on one line of YAML, readable by the loader."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def show(value: Any) -> str:
    """A value as error messages print it: text in quotes, long values shortened."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else flow(plain(value))
    return text if len(text) <= 72 else text[:69] + "..."
