"""A loaded recipe: its typed value, the source of every leaf, and both written out as YAML or as rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sleeptrain.config.interpolate import escape
from sleeptrain.config.tree import expands, flow, join, leaves, plain, show

T = TypeVar("T")

_COMMENTS = 56
"""Column at which the comments of `to_yaml` start at the latest, where lines allow."""


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """What `load` returns."""

    value: T
    """The schema's instance, all sections filled in."""
    places: dict[str, str] = field(repr=False)
    """The source of everything that a file or the command line wrote, sections included."""

    @property
    def sources(self) -> dict[str, str]:
        """`rule110-tiny.yaml:12`, `command line` or `default` for the dotted path of each leaf."""
        return {path: source for path, _, source in self.rows()}

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted path, plain value, source) of each leaf, in the order of the schema. A list of scalars is one leaf."""
        return [(path, value, self.places.get(path, "default")) for path, value in leaves(plain(self.value))]

    def at(self, path: str) -> str:
        """`optim.lr = 0.1 (command line)`: one value as error messages name it."""
        value = plain(self.value)
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        return f"{path} = {show(value)} ({self.places.get(path, 'default')})"

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, with the source of each value in a comment. Loading it gives an equal value."""
        lines = _lines(plain(self.value), "", 0, self.places)
        column = min(max((len(text) for text, source in lines if source), default=0), _COMMENTS)
        return "".join(f"{text.ljust(column)}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _lines(value: Any, path: str, depth: int, places: dict[str, str]) -> list[tuple[str, str | None]]:
    """(text, source) of each line of a mapping or of a list that holds mappings."""
    pad = "  " * depth
    result: list[tuple[str, str | None]] = []
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        inner = join(path, str(key))
        start = f"{pad}{flow(key)}:" if isinstance(value, dict) else f"{pad}-"
        if not expands(child):
            result.append((f"{start} {flow(_escaped(child))}", places.get(inner, "default")))
        elif isinstance(value, dict):
            result.append((start, None))
            result += _lines(child, inner, depth + 1, places)
        else:
            first, *rest = _lines(child, inner, depth + 1, places)
            result += [(f"{start} {first[0].lstrip()}", first[1]), *rest]
    return result


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list):
        return [_escaped(child) for child in value]
    return {key: _escaped(child) for key, child in value.items()} if isinstance(value, dict) else value
