"""A loaded recipe: its typed value, the source of every leaf, and both written out as YAML or as rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sleeptrain.config.files import read_yaml
from sleeptrain.config.tree import KeyPath, Node, claim, dump, escape, items, plain, select

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """What `load` returns."""

    value: T
    """The schema's instance, all sections filled in."""
    places: dict[KeyPath, str] = field(repr=False)
    """The source of everything that a file or the command line wrote, sections included."""

    @property
    def sources(self) -> dict[str, str]:
        """`rule110-tiny.yaml:12`, `command line` or `default` for the dotted path of each leaf."""
        return {path: source for path, _, source in self.rows()}

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted path, plain value, source) of each leaf, in the schema's order. A list of scalars is one leaf."""
        return [(".".join(path), value, self.source(path)) for path, value in _leaves(plain(self.value))]

    def source(self, path: KeyPath) -> str:
        """The source of the value at a path."""
        return self.places.get(path, "default")

    def at(self, path: str) -> str:
        """`optim.lr = 0.1 (command line)`: one value as error messages name it."""
        keys = tuple(path.split("."))
        return claim(keys, Node(select(self.value, keys), self.source(keys)))

    def to_yaml(self) -> str:
        """The recipe with defaults, and each value's source in a comment. Loading it gives an equal value."""
        text = dump(plain(self.value, escape), None)
        lines, tree = text.splitlines(), read_yaml(text, lambda mark: str(mark.line))
        sources = {int(select(tree, path).source): self.source(path) for path, _ in _leaves(plain(self.value))}
        column = min(max(len(lines[number]) for number in sources), 56)
        told = [f"{text.ljust(column)}  # {sources[at]}" if at in sources else text for at, text in enumerate(lines)]
        return "\n".join([*told, ""])


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of the scalars, lists of scalars and empty mappings in a plain value."""
    children = items(value)
    if not children or not (isinstance(value, dict) or any(isinstance(child, dict) for _, child in children)):
        yield path, value
    else:
        for key, child in children:
            yield from _leaves(child, (*path, key))
