"""A loaded recipe: its typed value, the source of every leaf, and both written out as YAML or as rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sleeptrain.config.tree import escape, flow, items, plain, select, show

T = TypeVar("T")


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
        return [(path, value, self._source(path)) for path, value, _, whole in _lines(plain(self.value)) if whole]

    def at(self, path: str) -> str:
        """`optim.lr = 0.1 (command line)`: one value as error messages name it."""
        return f"{path} = {show(select(self.value, tuple(path.split('.'))))} ({self._source(path)})"

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, with the source of each value in a comment. Loading it gives an equal value."""
        lines = [(text, self._source(path) if whole else "") for path, _, text, whole in _lines(plain(self.value))]
        column = min(max((len(text) for text, source in lines if source), default=0), 56)
        return "".join(f"{text.ljust(column)}  # {source}\n" if source else f"{text}\n" for text, source in lines)

    def _source(self, path: str) -> str:
        return self.places.get(path, "default")


def _lines(value: Any, above: str = "", pad: str = "") -> Iterator[tuple[str, Any, str, bool]]:
    """(dotted path, value, line of YAML, whether the line has the whole value) of everything in a mapping or a list."""
    for key, child in items(value):
        path, start = f"{above}{key}", f"{pad}{flow(key)}:" if isinstance(value, dict) else f"{pad}-"
        if not child or (not isinstance(child, dict) and not any(isinstance(part, dict) for _, part in items(child))):
            yield path, child, f"{start} {flow(plain(child, escape))}", True
            continue
        inner = _lines(child, f"{path}.", f"{pad}  ")
        if isinstance(value, dict):
            yield path, child, start, False
        else:
            first = next(inner)
            yield first[0], first[1], f"{start} {first[2].lstrip()}", first[3]
        yield from inner
