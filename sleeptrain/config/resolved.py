"""A loaded recipe: its typed value, the source of every leaf, and both written out as YAML or as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sleeptrain.config.tree import escape, flow, items, plain, select, show

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
        return [(path, value, self.places.get(path, "default")) for path, value in _leaves(plain(self.value), "")]

    def at(self, path: str) -> str:
        """`optim.lr = 0.1 (command line)`: one value as error messages name it."""
        return f"{path} = {show(select(self.value, tuple(path.split('.'))))} ({self.places.get(path, 'default')})"

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, with the source of each value in a comment. Loading it gives an equal value."""
        lines = _lines(plain(self.value), "", 0, self.places)
        column = min(max((len(text) for text, source in lines if source), default=0), _COMMENTS)
        return "".join(f"{text.ljust(column)}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _expands(value: Any) -> bool:
    """Whether a plain value is shown by its parts: a mapping with keys, or a list that holds mappings."""
    return bool(value) if isinstance(value, dict) else any(isinstance(child, dict) for _, child in items(value))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not _expands(value):
        yield path, value
        return
    for key, child in items(value):
        yield from _leaves(child, f"{path}.{key}" if path else key)


def _lines(value: Any, path: str, depth: int, places: dict[str, str]) -> list[tuple[str, str | None]]:
    """(text, source) of each line of a mapping or of a list that holds mappings."""
    pad = "  " * depth
    result: list[tuple[str, str | None]] = []
    for key, child in items(value):
        inner = f"{path}.{key}" if path else key
        start = f"{pad}{flow(key)}:" if isinstance(value, dict) else f"{pad}-"
        if not _expands(child):
            result.append((f"{start} {flow(escape(child))}", places.get(inner, "default")))
        elif isinstance(value, dict):
            result += [(start, None), *_lines(child, inner, depth + 1, places)]
        else:
            first, *rest = _lines(child, inner, depth + 1, places)
            result += [(f"{start} {first[0].lstrip()}", first[1]), *rest]
    return result
