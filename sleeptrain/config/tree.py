"""The merged recipe: plain values with the place each was written at; how they are merged, interpolated, walked and shown."""

import dataclasses
import json
import re
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from sleeptrain.config.scalars import Dumper, read_plain

KeyPath = tuple[str, ...]
"""Keys from the root to a value; an element of a list is its position in digits."""


class Place(NamedTuple):
    """Where a value was written."""

    source: str
    """`rule110-tiny.yaml:12` or `command line`."""
    text: str | None = None
    """An unquoted scalar as written: `010` and `no` are meant as text where the field is text."""
    broken: bool = False
    """The value cannot be used, which is reported already."""


@dataclass
class Tree:
    """The layers merged so far: defaults, then files, then the command line."""

    data: dict[str, Any]
    places: ChainMap[KeyPath, Place] = field(default_factory=ChainMap)
    """One map for each layer, the newest first: a value is of the newest layer that has its path. Defaults have no map."""

    def source(self, path: KeyPath) -> str:
        """`rule110-tiny.yaml:12`, `command line` or `default`."""
        return self.places[path].source if path in self.places else "default"

    def age(self, path: KeyPath) -> int:
        """How many layers are newer than the one that wrote a value."""
        return next((age for age, layer in enumerate(self.places.maps) if path in layer), len(self.places.maps))

    def claim(self, path: KeyPath) -> str:
        """`optim.lr = 1e-1 (command line)`: a value as error messages name it, numbers as they were written."""
        value, place = select(self.data, path), self.places.get(path, Place("default"))
        written = place.text if place.text and not isinstance(value, str) else show(value)
        return f"{'.'.join(path)} = {written} ({place.source})"

    def interpolate(self, errors: list[str]) -> set[KeyPath]:
        """Replaces references and `${oc.env:NAME}` by values. Returns the paths of those that have none, after adding errors."""
        broken = {path for path, _ in walk(self.data) if path in self.places and self.places[path].broken}
        found = [path for path, value in walk(self.data) if isinstance(value, str) and "${" in value]
        if not found:
            return broken
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        config = OmegaConf.create(self.data)
        for path in found:
            value, source = config, self.source(path)
            try:
                for key in path:
                    value = value[int(key)] if OmegaConf.is_list(value) else value[key]
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException as error:
                errors.append(f"{self.claim(path)}: cannot be resolved: {str(error).splitlines()[0]}")
                broken.add(path)
                value = None
            for inner, part in walk(value, path):
                self.places[inner] = Place(source, part if isinstance(part, str) else None)
            parent = select(self.data, path[:-1])
            key = int(path[-1]) if isinstance(parent, list) else path[-1]
            parent[key] = read_plain(value) if isinstance(value, str) else value
        return broken


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings are merged key by key, everything else is replaced."""
    from omegaconf import OmegaConf

    both = {key: below[key] for key in above if key in below}
    return {**below, **OmegaConf.to_container(OmegaConf.merge(_kept(both, above), above))}  # type: ignore[dict-item]


def _kept(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` without what `above` replaces: OmegaConf refuses a list over a mapping, and merges into what is referred to."""
    pairs = [(key, value, above.get(key, {})) for key, value in below.items()]
    both = [(key, value, new) for key, value, new in pairs if isinstance(value, dict) and isinstance(new, dict)]
    return {key: value for key, value in below.items() if key not in above} | {k: _kept(v, new) for k, v, new in both}


def escape(value: Any) -> Any:
    """A plain value whose texts mean themselves when they are read back, although they look like interpolations."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, list):
        return [escape(child) for child in value]
    return {key: escape(child) for key, child in value.items()} if isinstance(value, dict) else value


def items(value: Any) -> list[tuple[str, Any]]:
    """The children of a section, a mapping or a list by name or position; of a section in part, those it has."""
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value) if item.init and hasattr(value, item.name)]
        return [(name, getattr(value, name)) for name in names]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [(str(key), child) for key, child in pairs]


def plain(value: Any) -> Any:
    """Sections as dicts and tuples as lists, all the way down."""
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    is_mapping = isinstance(value, dict) or dataclasses.is_dataclass(value)
    return {key: plain(child) for key, child in items(value)} if is_mapping else value


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of a value and of everything below it."""
    yield path, value
    for key, child in items(value):
        yield from walk(child, (*path, key))


def select(value: Any, path: KeyPath) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        value = dict(items(value)).get(key)
    return value


def flow(value: Any) -> str:
    """A plain value on one line of YAML, readable by the loader."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def show(value: Any) -> str:
    """A plain value as error messages print it: text in quotes, long values shortened."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else flow(plain(value))
    return text if len(text) <= 72 else text[:69] + "..."
