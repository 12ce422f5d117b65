"""`${...}` in recipes: references to other values and `${oc.env:NAME}`, resolved by OmegaConf."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sleeptrain.config.scalars import read_plain
from sleeptrain.config.tree import Node, node_items, show, with_nodes


def interpolate(tree: Node, defaults: dict[str, Any], errors: list[str]) -> Node:
    """The tree with every interpolation replaced by its value; references see defaults as well.

    Each one that cannot be resolved adds an error and leaves a broken node in its place.
    """
    if not _mentions(tree):
        return tree
    from omegaconf import OmegaConf

    tree = _without_bad_grammar(tree, errors)
    values = OmegaConf.create(_overlay(defaults, tree))
    return _map(tree, (), lambda node, path: _resolve(node, path, values, errors))


def escape(text: str) -> str:
    """Text that means itself when it is read back, although it looks like an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def _is_candidate(node: Node) -> bool:
    return isinstance(node.value, str) and "${" in node.value and not node.broken


def _mentions(node: Node) -> bool:
    return _is_candidate(node) or any(_mentions(child) for _, child in node_items(node))


def _map(node: Node, path: tuple[str, ...], change: Callable[[Node, tuple[str, ...]], Node]) -> Node:
    """The tree with `change(node, path)` for each text that may hold an interpolation."""
    if node.shape == "mapping":
        children: Any = {key: _map(child, (*path, key), change) for key, child in node.value.items()}
    elif node.shape == "list":
        children = [_map(child, (*path, key), change) for key, child in node_items(node)]
    else:
        return change(node, path) if _is_candidate(node) else node
    return Node(children, node.source, node.layer, node.text)


def _without_bad_grammar(tree: Node, errors: list[str]) -> Node:
    """OmegaConf refuses a whole tree for one string with an open brace; those are taken out first."""
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError

    def check(node: Node, path: tuple[str, ...]) -> Node:
        try:
            OmegaConf.create({"text": node.value})
        except GrammarParseError as error:
            errors.append(
                f"{'.'.join(path)} = {show(node.value)} ({node.source}): not a valid interpolation: {_first_line(error)}"
            )
            return replace(node, broken=True)
        return node

    return _map(tree, (), check)


def _overlay(defaults: Any, node: Node) -> Any:
    """The plain value of a node, over the defaults of its section."""
    if node.broken:
        return None
    if node.shape == "mapping":
        below = defaults if isinstance(defaults, dict) else {}
        return {**below, **{key: _overlay(below.get(key), child) for key, child in node.value.items()}}
    return [_overlay(None, child) for child in node.value] if node.shape == "list" else node.value


def _resolve(node: Node, path: tuple[str, ...], values: Any, errors: list[str]) -> Node:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value: Any = values
        for part in path:
            value = value[int(part)] if OmegaConf.is_list(value) else value[part]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        errors.append(
            f"{'.'.join(path)} = {show(node.value)} ({node.source}): cannot be resolved: {_first_line(error)}"
        )
        return replace(node, broken=True)
    if isinstance(value, str):  # quoted or not: flow collections need the quotes
        return Node(read_plain(value), node.source, node.layer, value)
    return with_nodes(value, node.source, node.layer)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
