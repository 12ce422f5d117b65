"""The untyped tree between YAML and the sections: values that remember where they were written, and how trees are merged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from sleeptrain.config.scalars import Dumper

SHOWN = 72
"""Characters of a value that an error message shows."""


@dataclass(frozen=True)
class Node:
    """One value of a recipe, with its place."""

    value: Any
    """A scalar, a dict of text to Node, or a list of Node."""
    source: str
    """`rule110-tiny.yaml:12`, `command line` or `default`."""
    layer: int = 0
    """Which file or command line wrote it: later layers are above earlier ones. A mapping has its newest child's."""
    text: str | None = None
    """A plain (unquoted) scalar as it was written: `off` may be meant as text, `0010` as well."""

    broken: bool = False
    """Its interpolation failed, which is reported already."""

    @property
    def shape(self) -> str:
        """`mapping`, `list` or `scalar`."""
        return "mapping" if isinstance(self.value, dict) else "list" if isinstance(self.value, list) else "scalar"


def merge(below: Node | None, above: Node) -> Node:
    """`above` over `below`: mappings are merged key by key, everything else is replaced."""
    if below is None or below.shape != "mapping" or above.shape != "mapping":
        return above
    children = dict(below.value)
    for key, child in above.value.items():
        children[key] = merge(children.get(key), child)
    return Node(children, above.source, max(below.layer, above.layer))


def without_nodes(node: Node) -> Any:
    """The plain value of a node: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: without_nodes(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [without_nodes(child) for child in node.value]
    return node.value


def with_nodes(value: Any, source: str, layer: int = 0) -> Node:
    """The inverse of `without_nodes`, with the same source everywhere."""
    if isinstance(value, dict):
        return Node({str(key): with_nodes(child, source, layer) for key, child in value.items()}, source, layer)
    if isinstance(value, list | tuple):
        return Node([with_nodes(child, source, layer) for child in value], source, layer)
    return Node(value, source, layer)


def places(node: Node, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, source) of a node and of everything below it."""
    yield path, node.source
    for key, child in node_items(node):
        yield from places(child, join(path, key))


def node_items(node: Node) -> list[tuple[str, Node]]:
    """The children of a node by name; of a list by position."""
    if isinstance(node.value, dict):
        return list(node.value.items())
    return [(str(index), child) for index, child in enumerate(node.value)] if isinstance(node.value, list) else []


def plain(value: Any) -> Any:
    """Sections as dicts and tuples as lists, all the way down. Sections that are only partly there keep what they have."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init and hasattr(value, field.name)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, list | tuple) else value


def expands(value: Any) -> bool:
    """Whether a plain value is shown by its parts: a mapping with keys, or a list that holds mappings."""
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and any(isinstance(child, dict) for child in value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, plain value) of every leaf of a plain value. A list of scalars is one leaf."""
    if not expands(value):
        yield path, value
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(child, join(path, str(key)))


def join(path: str, key: str) -> str:
    """`path.key`, where either may be empty."""
    return f"{path}.{key}" if path and key else path or key


def flow(value: Any) -> str:
    """A plain value on one line of YAML, readable by the loader."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def show(value: Any) -> str:
    """A plain value as error messages print it: text in quotes, long values shortened."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else flow(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
