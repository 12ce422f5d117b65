"""`key=value` on the command line: parse it as YAML and lay it over the tree of the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sleeptrain.config.files import Document
from sleeptrain.config.tree import KeyPath, Place, Tree, items, merge, select, show

SOURCE = "command line"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")


def parse_override(
    override: str, errors: list[str], places: dict[KeyPath, Place] | None = None
) -> tuple[str, Any] | None:
    """(dotted key, plain value) of one override; None after adding what is wrong with it to `errors`."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.match(key):
        errors.append(f"{show(override)} ({SOURCE}): expected key=value, such as train.steps=100")
        return None
    document = Document(key, [], SOURCE, {} if places is None else places)
    value = document.read(text, tuple(key.split(".")))
    quotes = f"text with special characters needs quotes: {key}='\"...\"'"
    for error in document.errors:
        reason = error.removeprefix(f"{SOURCE}: ")
        errors.append(f"{key} = {show(text)} ({SOURCE}): {reason}; {quotes}" if reason != error else error)
    return None if document.errors else (key, value)


def apply_overrides(tree: Tree, overrides: Sequence[str], errors: list[str]) -> None:
    """Lays the overrides over the tree, in order, as one layer; `errors` gets what cannot be read or placed."""
    tree.places = tree.places.new_child()
    for override in overrides:
        places: dict[KeyPath, Place] = {}
        parsed = parse_override(override, errors, places)
        if parsed is None:
            continue
        path = tuple(parsed[0].split("."))
        try:
            above = _nest(tree.data, path, 0, parsed[1])
        except IndexError as error:
            errors.append(f"{parsed[0]} ({SOURCE}): {error}")
            continue
        for section in (path[:depth] for depth in range(1, len(path))):
            if section not in tree.places or not items(select(tree.data, section)):
                tree.places[section] = Place(SOURCE)
        tree.data = merge(tree.data, above)
        tree.places.update(places)


def _nest(below: Any, path: KeyPath, depth: int, value: Any) -> Any:
    """What to merge into `below`, which stands at `path[:depth]`: mappings down to the value; a list is given whole."""
    if depth == len(path):
        return value
    key, name = path[depth], ".".join(path[:depth])
    if not isinstance(below, list):
        return {key: _nest(below.get(key) if isinstance(below, dict) else None, path, depth + 1, value)}
    if not key.isdecimal() or int(key) >= len(below):
        last = f"; the last is {name}.{len(below) - 1}" if below else ""
        raise IndexError(f"{name} has {len(below)} elements{last}; give a longer list whole: {name}=[...]")
    element = below[int(key)]
    merged = merge({key: element}, {key: _nest(element, path, depth + 1, value)})[key]
    return [*below[: int(key)], merged, *below[int(key) + 1 :]]
