"""`key=value` on the command line: parse it as YAML and lay it over the tree of the files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sleeptrain.config.files import parse
from sleeptrain.config.tree import Node, join, merge, show, with_nodes

SOURCE = "command line"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")


def apply_overrides(
    tree: Node, overrides: Sequence[str], defaults: Mapping[str, Any], layer: int, errors: list[str]
) -> Node:
    """`tree` with the overrides laid over it, in order.

    defaults   the plain default values: a list that only stands there can be addressed by position too
    errors     gets one entry for each override that cannot be read or placed
    """
    for override in overrides:
        parsed = parse_override(override, layer, errors)
        if parsed is not None:
            tree = _put(tree, parsed[0].split("."), parsed[1], defaults, "", errors)
    return tree


def parse_override(override: str, layer: int, errors: list[str]) -> tuple[str, Node] | None:
    """(dotted key, value) of one override; None after adding what is wrong with it to `errors`."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.match(key):
        errors.append(f"{show(override)} ({SOURCE}): expected key=value, such as train.steps=100")
        return None
    problems: list[str] = []
    node = parse(text, key, layer, problems, SOURCE)
    if node is None or problems:
        reason = problems[0].removeprefix(f"{SOURCE}: ")
        quotes = f"text with special characters needs quotes: {key}='\"...\"'"
        errors.append(f"{key} = {show(text)} ({SOURCE}): {reason}; {quotes}")
        return None
    return key, node


def _put(below: Node | None, parts: list[str], node: Node, default: Any, path: str, errors: list[str]) -> Node:
    if not parts:
        return merge(below, node)
    if below is None and isinstance(default, list):
        below = with_nodes(default, "default")
    head, rest = parts[0], parts[1:]
    if below is not None and below.shape == "list":
        return _put_into_list(below, head, rest, node, path, errors)
    children = below.value if below is not None and below.shape == "mapping" else {}
    inner = default.get(head) if isinstance(default, dict) else None
    child = _put(children.get(head), rest, node, inner, join(path, head), errors)
    return Node({**children, head: child}, below.source if below is not None and children else node.source, node.layer)


def _put_into_list(below: Node, head: str, rest: list[str], node: Node, path: str, errors: list[str]) -> Node:
    if not head.isdecimal() or int(head) >= len(below.value):
        count = len(below.value)
        last = f"; the last is {path}.{count - 1}" if count else ""
        errors.append(
            f"{'.'.join([path, head, *rest])} ({SOURCE}): {path} has {count} elements{last}; give a longer list whole: {path}=[...]"
        )
        return below
    elements = list(below.value)
    elements[int(head)] = _put(elements[int(head)], rest, node, None, join(path, head), errors)
    return Node(elements, below.source, node.layer)
