"""`load`: a recipe, its includes and the command line become one typed value, or one error that lists everything wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sleeptrain.config.errors import UserError
from sleeptrain.config.files import Files, configs_root, find_recipe
from sleeptrain.config.overrides import apply_overrides
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.rules import Rule, check
from sleeptrain.config.sections import FAILED, Reader, defaults_of
from sleeptrain.config.tree import Tree, escape, walk

T = TypeVar("T")


def load(
    recipe: str,
    overrides: Sequence[str],
    schema: type[T],
    *,
    rules: Sequence[Rule[Any]] = (),
    root: Path | None = None,
) -> Resolved[T]:
    """Reads a recipe into `schema`: the included files, the recipe's own keys over them, then `overrides`.

    recipe      a path, or the name of a file in `root`
    overrides   `section.key=value` in YAML, in the order given
    schema      a frozen dataclass of sections; each may have `problems() -> list[Problem]`
    rules       what must hold between sections
    root        the folder of recipes and of what they include (default: the shipped `configs`)

    Raises UserError with every error found, each with the value, where it came from and the nearest right name.
    """
    root = configs_root() if root is None else root
    errors: list[str] = []
    tree = Tree(escape(defaults_of(schema)))
    files = Files(root, tree, errors)
    try:
        files.read(find_recipe(recipe, root))
    except UserError as error:
        files.complete = False
        errors += error.errors
    apply_overrides(tree, overrides, errors)
    reader = Reader(schema, tree, files.complete, errors, tree.interpolate(errors))
    places = {".".join(path): tree.source(path) for path, _ in walk(tree.data) if path in tree.places}
    value = reader.value(schema, tree.data, ())
    if value is not FAILED:
        resolved: Resolved[T] = Resolved(value, places)
        unsure = set() if files.complete else {path for path, source in resolved.sources.items() if source == "default"}
        bad = {".".join(path) for path in reader.failed | reader.refused}
        errors += check(rules, resolved, bad | unsure)
    if errors:
        raise UserError(list(dict.fromkeys(errors)))
    return resolved
