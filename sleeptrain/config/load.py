"""`load`: a recipe, its includes and the command line become one typed value, or one error that lists everything wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sleeptrain.config.errors import UserError
from sleeptrain.config.files import Files, configs_root, find_recipe
from sleeptrain.config.interpolate import interpolate
from sleeptrain.config.kinds import FAILED
from sleeptrain.config.overrides import apply_overrides
from sleeptrain.config.resolved import Resolved
from sleeptrain.config.rules import Rule, check
from sleeptrain.config.tree import Node, places
from sleeptrain.config.typed import Converter, Partial, defaults_of

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
    files = Files(root, errors)
    try:
        tree = files.read(find_recipe(recipe, root))
    except UserError as error:
        tree, files.complete = Node({}, recipe), False
        errors += error.errors
    defaults = defaults_of(schema)
    tree = apply_overrides(tree, overrides, defaults, files.layers + 1, errors)
    tree = interpolate(tree, defaults, errors)
    converter = Converter(schema, errors, files.complete)
    value: Any = converter.section(schema, tree, "")
    if value is not FAILED:
        sound = value.as_section() if isinstance(value, Partial) else value
        resolved: Resolved[T] = Resolved(sound, dict(places(tree)))
        unsure = {path for path, source in resolved.sources.items() if source == "default" and not files.complete}
        errors += check(rules, resolved, converter.failed | unsure)
    if errors:
        raise UserError(list(dict.fromkeys(errors)))
    return resolved
