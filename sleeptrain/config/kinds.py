"""The types that fields of sections may have: what shape they take, how they are called, which scalars they accept."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from sleeptrain.config.tree import Node

FAILED = object()
"""What a value is that could not be converted; its error is reported already."""

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def is_union(kind: Any) -> bool:
    """Whether a type is `A | B` or `Optional[A]`."""
    return get_origin(kind) in (Union, types.UnionType)


def field_names(section: type) -> list[str]:
    """The keys that a section may have."""
    return [field.name for field in fields(section) if field.init]


def sections(kind: Any) -> list[type]:
    """The section dataclasses that a type may be; several for a union of variants."""
    if is_union(kind):
        return [section for member in get_args(kind) for section in sections(member)]
    return [kind] if is_dataclass(kind) and isinstance(kind, type) else []


def describe(kind: Any) -> str:
    """A type in words, as it follows `expected`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_union(kind):
        members = [describe(member) for member in arguments]
        return " or ".join([", ".join(members[:-1]), members[-1]] if len(members) > 2 else members)
    if origin is Literal:
        words = [str(argument) for argument in arguments]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if is_dataclass(kind) and isinstance(kind, type):
        return "{" + ", ".join(field_names(kind)) + "}"
    if (origin or kind) in (list, tuple):
        return "a list" + (f" of {describe(arguments[0])}" if arguments and _short(arguments[0]) else "")
    if (origin or kind) is dict:
        return "a mapping"
    return _WORDS.get(kind, str(kind))


def _short(kind: Any) -> bool:
    return kind in (int, float, str) or is_dataclass(kind)


def default_of(item: dataclasses.Field[Any], base: Any) -> Any:
    """The default of a field, taken from the instance `base` if there is one; dataclasses.MISSING if there is none."""
    if base is not None:
        return getattr(base, item.name)
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def scalar(kind: Any, node: Node) -> Any:
    """A scalar node as an int, float, bool, str or one of the values of a Literal; FAILED if it is none."""
    value = node.value
    if get_origin(kind) is Literal:
        for option in get_args(kind):
            if (type(option) is type(value) and option == value) or (isinstance(option, str) and option == node.text):
                return option
        return FAILED
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and node.text is not None and value is not None:
        return node.text
    return value if type(value) is kind else FAILED


def eagerness(member: Any, node: Node) -> int:
    """In which order the members of a union are tried on a scalar: exact ones first, text last."""
    if get_origin(member) is Literal:
        return 0
    return 1 if type(node.value) is member else 3 if member is str else 2


def shape_of(kind: Any) -> str:
    """`mapping`, `list` or `scalar`: what a value of this type is written as. Raises TypeError for types unknown here."""
    origin = get_origin(kind) or kind
    if is_dataclass(kind) or origin is dict:
        return "mapping"
    if origin in (list, tuple):
        return "list"
    if origin is Literal or kind in (int, float, bool, str):
        return "scalar"
    raise TypeError(
        f"a section has a field of type {kind}; recipes know int, float, bool, str, Literal, list, tuple, dict and sections"
    )


def required(kind: type, base: Any) -> list[str]:
    """The fields of a section that have no default."""
    missing = dataclasses.MISSING
    return [item.name for item in dataclasses.fields(kind) if item.init and default_of(item, base) is missing]


def options(kind: Any) -> list[Any]:
    """All values of the Literals in a type."""
    if is_union(kind):
        return [option for member in get_args(kind) for option in options(member)]
    return list(get_args(kind)) if get_origin(kind) is Literal else []
