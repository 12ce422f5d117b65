"""The names and types of a schema in words, and which name was probably meant."""

import dataclasses
import types
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sleeptrain.config.tree import KeyPath, Node

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    dict: "a mapping",
    Any: "anything",
}


def is_section(kind: Any) -> bool:
    """Whether a type is a section dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def members(kind: Any) -> tuple[Any, ...]:
    """The members of `A | B` or `Optional[A]`; any other type is its own only member."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


@cache
def fields_of(section: type) -> dict[str, Any]:
    """The keys that a section may have, with their types."""
    hints = get_type_hints(section)
    return {item.name: hints[item.name] for item in dataclasses.fields(section) if item.init}


def variant(kind: Any, node: Node) -> Any:
    """The member of a type that a mapping or a list is meant as; None for scalars, or if no single one can be told."""
    shapes = (list, tuple) if isinstance(node.value, list) else (dict,) if isinstance(node.value, dict) else ()
    fitting = [one for one in members(kind) if (dict if is_section(one) else get_origin(one) or one) in shapes]
    fitting = list(filter(is_section, fitting)) or fitting
    if len(fitting) < 2 or isinstance(node.value, list):
        return fitting[0] if len(fitting) == 1 else None
    shared = [len(node.value.keys() & fields_of(one).keys()) for one in fitting]
    return fitting[shared.index(max(shared))] if any(shared) else None


def element_type(kind: Any, key: str) -> Any:
    """The type of a field of a section, or of an element of a list, a tuple or a mapping."""
    if is_section(kind):
        return fields_of(kind).get(key, Any)
    arguments = [argument for argument in get_args(kind) or (Any,) if argument is not Ellipsis]
    return arguments[min(int(key), len(arguments) - 1) if get_origin(kind) is tuple else -1]


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
        return f"a list of {describe(arguments[0])}" if arguments and arguments[0] is not Any else "a list"
    if origin not in _WORDS:
        raise TypeError(f"{kind}: recipes know int, float, bool, str, Literal, list, tuple, dict and sections")
    return _WORDS[origin]


def all_names(schema: type, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every section and every leaf, those of all variants and of the first element of lists included."""
    for name, kind in fields_of(schema).items():
        yield (*path, name)
        for one in members(kind):
            inner, index = (get_args(one)[0], ("0",)) if get_origin(one) is list else (one, ())
            if is_section(inner):
                yield from all_names(inner, (*path, name, *index))


def nearest(word: object, names: Iterable[str], count: int = 1) -> str:
    """`; did you mean a or b?` with the names most like a word, or nothing when none is near."""
    near = get_close_matches(str(word), sorted(names), count)
    return f"; did you mean {' or '.join(near)}?" if near else ""
