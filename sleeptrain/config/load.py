"""`load`: a recipe, its includes and the command line become one typed value, or one error that lists everything wrong."""

import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from sleeptrain.config.errors import UserError
from sleeptrain.config.files import Document, Files, configs_root
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.rules import Rule, check
from sleeptrain.config.sections import FAILED, SectionReader, defaults_of
from sleeptrain.config.tree import KeyPath, Place, Tree, escape, plain, show, walk

T = TypeVar("T")
SOURCE = "command line"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")


def load(
    recipe: str, overrides: Sequence[str], schema: type[T], *, rules: Sequence[Rule[Any]] = (), root: Path | None = None
) -> Resolved[T]:
    """Reads a recipe into `schema`: the included files, the recipe's own keys over them, then `overrides`.

    recipe      a path, or the name of a file in `root`
    overrides   `section.key=value` in YAML, in the order given
    schema      a frozen dataclass of sections; each may have `problems() -> list[Problem]`
    rules       what must hold between sections
    root        the folder of recipes and of what they include (default: the shipped `configs`)

    Raises UserError with every error found, each with the value, where it came from and the nearest right name.
    """
    tree = Tree()
    Files((root or configs_root()).resolve(), tree).find(recipe)
    tree.places = tree.places.new_child()
    for override in overrides:
        if (parsed := parse_override(override, tree.errors)) is not None:
            path, value, places = parsed
            tree.lay(reduce(lambda inner, key: {key: inner}, reversed(path), value), places)
    tree.over(plain(defaults_of(schema), escape))
    reader = SectionReader(schema, tree, tree.interpolate())
    sources = {".".join(path): tree.source(path) for path, _ in walk(tree.data) if path in tree.places}
    found = reader.value(schema, tree.data, ())
    resolved: Resolved[T] = Resolved(found, sources)
    if found is not FAILED:
        unsure = [] if tree.complete else [path for path, _, source in resolved.rows() if source == "default"]
        tree.errors += check(rules, resolved, [*map(".".join, reader.failed | reader.refused), *unsure])
    if tree.errors:
        raise UserError(list(dict.fromkeys(tree.errors)))
    return resolved


def parse_override(override: str, errors: list[str]) -> tuple[KeyPath, Any, dict[KeyPath, Place]] | None:
    """(keys, plain value, places) of one `key=value`; None after adding what is wrong with it to `errors`."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not _KEY.match(key.strip()):
        errors.append(f"{show(override)} ({SOURCE}): expected key=value, such as train.steps=100")
        return None
    document = Document(SOURCE, lines=False, places={path[:depth]: Place(SOURCE) for depth in range(1, len(path))})
    value = document.read(text, path)
    for error in document.errors:
        told, hint = f"{key} = {show(text)} ({SOURCE})", f"text with special characters needs quotes: {key}='\"...\"'"
        errors.append(f"{told}: {error.removeprefix(f'{SOURCE}: ')}; {hint}")
    return None if document.errors else (path, value, document.places)
