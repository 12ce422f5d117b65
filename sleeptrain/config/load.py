"""`load`: a recipe, its includes and the command line become one typed value, or one error that lists all errors."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import TypeVar

from sleeptrain.config.files import find, read_files, read_yaml
from sleeptrain.config.merge import merge
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.sections import SectionReader, defaults_of
from sleeptrain.config.tree import FAILED, Node, claim, interpolate, show, walk
from sleeptrain.errors import UserError

T = TypeVar("T")
SOURCE = "command line"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")


def load(
    recipe: str,
    overrides: Sequence[str],
    schema: type[T],
    root: Path,
    *,
    what: str = "recipe",
    check: Callable[[Resolved[T], Collection[str]], list[str]] = lambda resolved, refused: [],
) -> Resolved[T]:
    """Reads a recipe: the files that it includes, its own keys over theirs, then `overrides`.

    recipe      a path, or the name of a file in `root`
    overrides   `section.key=value` in YAML, in the order given
    schema      a frozen dataclass of sections; each may have `problems() -> list[Problem]`
    root        the folder of recipes and of what they include
    what        what such a file is called in errors
    check       the errors between sections, from the recipe and the dotted paths that `problems` refuses

    Raises UserError with every error found, each with the value, its source and the nearest right name. A file that
    cannot be read is reported alone.
    """
    errors: list[str] = []
    root = root.resolve()
    layers = list(read_files(find(recipe, root, what), root, what=what))
    layers += [layer for override in overrides if (layer := read_override(override, errors))]
    # Defaults come last: a value that replaces a section and is itself overridden must not replace its defaults.
    tree = reduce(lambda below, above: merge(below, above, schema, errors), layers, Node({}))
    tree = merge(Node.of(defaults_of(schema)), tree, schema, errors)
    interpolate(tree, errors)
    reader = SectionReader(schema, errors)
    sources = {path: node.source for path, node in walk(tree) if node.source != "default"}
    resolved: Resolved[T] = Resolved(reader.value(schema, tree), sources)
    if resolved.value is not FAILED:
        errors += check(resolved, reader.refused)
    if errors:
        raise UserError(list(dict.fromkeys(errors)))
    return resolved


def read_override(override: str, errors: list[str]) -> Node | None:
    """The tree of one `key=value`; None after adding what is wrong with it to `errors`."""
    key, equals, text = override.partition("=")
    if not equals or not _KEY.match(key.strip()):
        errors.append(f"{show(override)} ({SOURCE}): expected key=value, such as train.steps=100")
        return None
    path = key.strip().split(".")
    try:
        value = read_yaml(text, lambda mark: SOURCE)
    except UserError as error:
        told, reason = claim(path, Node(text, SOURCE)), str(error).removeprefix(f"{SOURCE}: ")
        errors.append(f"{told}: {reason}; text with special characters needs quotes: {key}='\"...\"'")
        return None
    return reduce(lambda inner, key: Node({key: inner}, SOURCE), reversed(path), value)
