"""The names a schema has, and which of them was probably meant."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches

from sleeptrain.config.kinds import field_names, sections
from sleeptrain.config.tree import join


def all_names(schema: type, path: str = "") -> Iterator[str]:
    """The dotted name of every section and every leaf."""
    hints = typing.get_type_hints(schema)
    for name in field_names(schema):
        yield join(path, name)
        for section in sections(hints[name]):
            yield from all_names(section, join(path, name))


def nearest(parent: str, key: str, rest: str, siblings: list[str], names: list[str]) -> str:
    """`; did you mean ...?` for the unknown `parent.key.rest`, or nothing when no name is near.

    `key` is what nothing is called; its `siblings` are what `parent` has. A slip among those comes first, then the same last
    word in another section, then any similar name.
    """
    path, leaf = join(join(parent, key), rest), (rest or key).rpartition(".")[2]
    found = [join(join(parent, name), rest) for name in get_close_matches(key, siblings, n=1, cutoff=0.7)]
    if rest:
        found = [name for name in found if name in names]
    if not found:
        same = {name for name in names if name.rpartition(".")[2] == leaf}
        found = sorted(same, key=lambda name: (-SequenceMatcher(None, path, name).ratio(), name))[:3]
    if not found:
        found = get_close_matches(path, names, n=1, cutoff=0.7)
    if not found:
        similar = get_close_matches(leaf, [name.rpartition(".")[2] for name in names], n=1, cutoff=0.8)
        found = [name for name in names if name.rpartition(".")[2] in similar][:1]
    return f"; did you mean {' or '.join(found)}?" if found else ""
