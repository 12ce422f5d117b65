"""The tree of a recipe's values, each with its source: how references are resolved, and values walked and shown."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import yaml

from sleeptrain.config.scalars import Dumper, read_plain

FAILED: Any = object()
"""Stands for a wrong value that is reported already."""
KeyPath = tuple[str, ...]
"""Keys from the root to a value; an element of a list is its position in digits."""


@dataclass
class Node:
    """A scalar, a dict of nodes or a list of nodes, with its source."""

    value: Any
    source: str = "default"
    """`rule110-tiny.yaml:12`, `command line` or `default`."""
    text: str | None = None
    """An unquoted scalar as written: `010` and `no` are text where the field is text."""

    @classmethod
    def of(cls, value: Any, source: str = "default") -> "Node":
        """A plain value as a tree of nodes from one source."""
        if isinstance(value, list):
            return cls([cls.of(child, source) for child in value], source)
        if isinstance(value, dict):
            return cls({key: cls.of(child, source) for key, child in value.items()}, source)
        return cls(value, source)


def interpolate(root: Node, errors: list[str]) -> None:
    """Replaces references and `${oc.env:NAME}` by values, or by FAILED after adding an error."""
    found = {path: node for path, node in walk(root) if isinstance(node.value, str) and "${" in node.value}
    if not found:
        return
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    def attempt(get: Callable[[KeyPath], Any], paths: dict[KeyPath, Any], failure: str) -> dict[KeyPath, Any]:
        values = {}
        for path in paths:
            try:
                values[path] = get(path)
            except (OmegaConfBaseException, RecursionError) as error:
                endless = isinstance(error, RecursionError)
                reason = "it refers to a value that contains it" if endless else str(error).splitlines()[0]
                errors.append(f"{claim(path, found[path])}: {failure}: {reason}")
                found[path].value = None
        return values

    def resolve(path: KeyPath) -> Any:
        value = reduce(lambda at, key: at[int(key) if OmegaConf.is_list(at) else key], path, config)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    # OmegaConf refuses the whole tree for one text that it cannot parse.
    valid = attempt(lambda path: OmegaConf.create([found[path].value]), found, "not a valid interpolation")
    config: Any = OmegaConf.create(plain(root))
    values = attempt(resolve, valid, "cannot be resolved")
    for path, node in found.items():
        value = values.get(path, FAILED)
        node.text = value if isinstance(value, str) else None
        node.value = Node.of(read_plain(value) if isinstance(value, str) else value, node.source).value


def items(value: Any) -> list[tuple[str, Any]]:
    """The children of a node, section, mapping or list by name or position."""
    value = value.value if isinstance(value, Node) else value
    if dataclasses.is_dataclass(value):
        return [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value) if item.init]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [(str(key), child) for key, child in pairs]


def plain(value: Any, change: Callable[[str], str] = str) -> Any:
    """Nodes and sections as dicts, lists and scalars, tuples as lists, all the way down, with changed texts."""
    value = value.value if isinstance(value, Node) else value
    if isinstance(value, list | tuple):
        return [plain(child, change) for child in value]
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
        return {key: plain(child, change) for key, child in items(value)}
    return change(value) if isinstance(value, str) else value


def escape(text: str) -> str:
    """Text that is read back as itself although it looks like an interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """(path, node) of a node and of everything below it."""
    yield path, node
    for key, child in items(node):
        yield from walk(child, (*path, key))


def select(value: Any, path: Iterable[str]) -> Any:
    """The value at a path of a section or a node; None where there is none."""
    return reduce(lambda inner, key: dict(items(inner)).get(key), path, value)


def dump(value: Any, flow: bool | None = True) -> str:
    """A plain value in YAML, on one line or (flow=None) with a line for each scalar and each list of scalars."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=flow, sort_keys=False, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def show(value: Any) -> str:
    """A value as error messages print it: text in quotes, a node's number as written, long values shortened."""
    if isinstance(value, Node) and value.text and not isinstance(value.value, str):
        return value.text
    value = plain(value)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else dump(value)
    return text if len(text) <= 72 else text[:69] + "..."


def claim(path: Iterable[str], node: Node) -> str:
    """`optim.lr = 1e-1 (command line)`: a value with its source, as error messages name it."""
    return f"{'.'.join(path)} = {show(node)} ({node.source})"
