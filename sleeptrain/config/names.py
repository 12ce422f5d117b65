"""The names and types of a schema in words, and which name was probably meant."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin

from sleeptrain.config.tree import KeyPath

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def is_section(kind: Any) -> bool:
    """Whether a type is a section dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def members(kind: Any) -> tuple[Any, ...]:
    """The members of `A | B` or `Optional[A]`; any other type is its own only member."""
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


@cache
def fields_of(section: type) -> dict[str, Any]:
    """The keys that a section may have, with their types."""
    hints = typing.get_type_hints(section)
    return {item.name: hints[item.name] for item in dataclasses.fields(section) if item.init}


def describe(kind: Any) -> str:
    """A type in words, as it follows `expected`. Raises TypeError for a type that recipes cannot hold."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if len(members(kind)) > 1:
        *first, last = map(describe, arguments)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(str, arguments))}"
    if is_section(kind):
        return f"{{{', '.join(fields_of(kind))}}}"
    if origin in (list, tuple):
        return f"a list of {describe(arguments[0])}" if arguments else "a list"
    if origin is not dict and kind not in _WORDS:
        raise TypeError(f"{kind}: recipes know int, float, bool, str, Literal, list, tuple, dict and sections")
    return "a mapping" if origin is dict else _WORDS[kind]


def all_names(schema: type, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every section and every leaf, those of all variants included."""
    for name, kind in fields_of(schema).items():
        yield (*path, name)
        for section in filter(is_section, members(kind)):
            yield from all_names(section, (*path, name))


def nearest(word: object, names: Iterable[str], count: int = 1) -> str:
    """`; did you mean a or b?` with the names most like a word, or nothing when none is near."""
    return did_you_mean(get_close_matches(str(word), sorted(names), count))


def did_you_mean(names: list[str]) -> str:
    """`; did you mean a or b?`, or nothing without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
