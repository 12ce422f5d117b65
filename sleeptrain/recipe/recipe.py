"""A recipe: the sections of all packages composed into one schema, and how it is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sleeptrain.config import Problem, Resolved
from sleeptrain.config.load import SOURCE
from sleeptrain.engine.deepspeed_keys import refused_keys
from sleeptrain.engine.settings import RESERVED_KEYS
from sleeptrain.recipe.kinds import load_file
from sleeptrain.recipe.rule import check
from sleeptrain.recipe.rules import RULES
from sleeptrain.run.folder import is_run_config
from sleeptrain.train.job import Job


@dataclass(frozen=True)
class Recipe(Job):
    """Everything a run is made of."""

    run_dir: str | None = None
    """The run folder; null: runs/<name of the recipe>, or the folder of a run's own config.yaml."""
    init_from: str | None = None
    """A run folder, whose newest checkpoint is taken, or a checkpoint in one, such as RUN/checkpoints/best: a new run starts from its
    weights, with new moments."""

    def __post_init__(self) -> None:
        for name in ("run_dir", "init_from"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.expanduser(path))

    def problems(self) -> list[Problem]:
        """Problems of the keys of `deepspeed:`, which has no section class of its own."""
        return [Problem(f"deepspeed.{path}", reason) for path, reason in refused_keys(self.deepspeed, RESERVED_KEYS)]

    def folder(self, name: str) -> Path:
        """The run folder of this recipe, which was loaded as `name`."""
        return Path(self.run_dir or Path("runs") / Path(name).stem)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Resolved[Recipe]:
    """Read a recipe, its includes and the command line. Raises UserError that lists every error at once.

    The config.yaml of a run folder belongs to that folder, wherever it was moved to.
    """
    resolved = load_file(name, overrides, Recipe, "recipe", partial(check, RULES))
    if is_run_config(Path(name)) and resolved.source(("run_dir",)) != SOURCE:
        folder = Path(name).parent
        folder = folder if folder.name not in ("", "..") else folder.resolve()  # messages name the run
        value = dataclasses.replace(resolved.value, run_dir=str(folder))
        return dataclasses.replace(
            resolved, value=value, places=resolved.places | {("run_dir",): f"the folder of {name}"}
        )
    return resolved
