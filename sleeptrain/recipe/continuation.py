"""Whether a run folder may be continued by a recipe, and opening it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sleeptrain import checkpoint
from sleeptrain.checkpoint.folder import step_of
from sleeptrain.config import Resolved
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import tokenizer_file
from sleeptrain.engine.lr_schedule import lr_multiplier
from sleeptrain.errors import UserError
from sleeptrain.recipe.completion import paths_of
from sleeptrain.recipe.recipe import Recipe, load_recipe
from sleeptrain.run.folder import (
    CHECKPOINTS,
    CONFIG,
    data_hash,
    has_checkpoint,
    has_steps,
    is_run_config,
    write_run_folder,
)
from sleeptrain.run.lock import run_lock
from sleeptrain.train.job import Job
from sleeptrain.train.layout import Layout

FREE = re.compile(
    r"run_dir|init_from|mesh\..*|train\.(micro|recompute|offload|kernels|compile|cuda_graphs|profile|gc_every|deterministic|matmul_precision)|data\.(workers|cache|cache_limit|sources\.\d+\.(path|name))"
)
"""Fields that a continuation may change because they change nothing that is learned, rounding aside. Data may have moved, since
its hash is compared."""
ANNOUNCED = re.compile(
    r"optim\.(lr|adam_lr|schedule\..*)|train\.(steps|tokens|batch|z_loss|guard\..*)|checkpoint\..*|eval\..*|log\..*"
    r"|data\.sources\.\d+\.proportion"
)
"""Fields that a continuation may change, and says so. All others are fixed."""
WATCHED = re.compile(r"(checkpoint|eval|log)\..*")
"""Fields of ANNOUNCED that say how a run is watched and saved, and change nothing that is learned."""
DERIVED = ("model.vocab", "model.deltanet.horizon")
"""Fields that the data fills in where a recipe leaves them null."""


@contextmanager
def claimed(resolved: Resolved[Recipe], name: str, manifest: Manifest) -> Iterator[None]:
    """Holds the lock of the run folder, which is made if it is new, after a check that this recipe may continue what it holds.

    Raises UserError where it may not, where another process holds the lock, or where the folder cannot be written; TryAgain
    where the lock stays held under a scheduler.
    """
    folder = resolved.value.folder(name)
    with ExitStack() as stack:
        with _naming_folder(resolved, folder):
            check_run(resolved, folder, manifest)
            stack.enter_context(run_lock(folder))
        yield


def open_run(resolved: Resolved[Recipe], name: str, manifest: Manifest) -> Path:
    """The run folder, made if it is new, with configuration, manifest of the data and environment written.

    Raises UserError where the folder holds a run of another configuration or on other data, or cannot be written.
    """
    folder = resolved.value.folder(name)
    with _naming_folder(resolved, folder):
        check_run(resolved, folder, manifest)
        # Paths of the data are saved so that they are right from every folder. The folder of a run is where its config.yaml is.
        located = dataclasses.replace(resolved.value, data=resolved.value.data.located(), run_dir=None)
        config = dataclasses.replace(resolved, value=located).to_yaml()
        write_run_folder(folder, config, manifest.body, tokenizer_file(located.data, manifest))
    return folder


@contextmanager
def _naming_folder(resolved: Resolved[Recipe], folder: Path) -> Iterator[None]:
    """Raises UserError with the folder and its source where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{resolved.at('run_dir')}: {folder} cannot be written ({error.strerror}: {error.filename}); "
            "name another folder with run_dir=..."
        ) from None


def check_run(resolved: Resolved[Recipe], folder: Path, manifest: Manifest | None = None) -> None:
    """Raise UserError if `folder` holds a run of another configuration, or of other data than `manifest` describes.

    So it does for the current folder and those above it, unless they hold a run: a run writes many files.
    """
    _check_not_here(resolved, folder)
    if has_steps(folder) and (
        changes := _changes(resolved, folder / CONFIG, lambda path: not ANNOUNCED.fullmatch(path))
    ):
        way_out = f"take the old values to continue it, or {_another_run(folder)}"
        raise UserError([f"{folder} holds a run of another configuration; {way_out}", *changes])
    if has_steps(folder) and has_checkpoint(folder):
        _check_budget(resolved, folder)
    if manifest and has_checkpoint(folder) and data_hash(folder) not in (None, manifest.body["hash"]):
        raise UserError(
            f"{folder} was trained on other data than {paths_of(resolved.value)} holds now; restore the old data to continue it, "
            f"or {_another_run(folder)}"
        )


def _check_budget(resolved: Resolved[Recipe], folder: Path) -> None:
    """Raise UserError where a budget of tokens would be translated into steps of a batch that the steps so far did not have."""
    before, now = load_recipe(str(folder / CONFIG)).value.train.batch, resolved.value.train
    if now.tokens is not None and before != now.batch:
        raise UserError(
            f"{resolved.at('train.batch')}, was {before}: train.tokens = {now.tokens:,} is a number of steps of one batch, and {folder} has "
            f"had steps of another; give the length as train.tokens=null train.steps=..., or {_another_run(folder)}"
        )


def _another_run(folder: Path) -> str:
    """The way out of what a run cannot change."""
    from_weights = f", from its weights with init_from={folder}" if has_checkpoint(folder) else ""
    return f"start another run with run_dir=...{from_weights}"


def check_seeds(resolved: Resolved[Recipe], folder: Path, seeds: Sequence[int]) -> None:
    """Raise UserError if a seed is given twice, or if the folder of several seeds holds a run itself."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {','.join(map(str, seeds))}: a seed is given twice")
    if is_run_config(folder / CONFIG):
        raise UserError(
            f"{folder} holds a run, and --seeds would put others into it; name another folder with run_dir=..."
        )
    _check_not_here(resolved, folder)


def _check_not_here(resolved: Resolved[Recipe], folder: Path) -> None:
    if not is_run_config(folder / CONFIG) and Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"{resolved.at('run_dir')}: {folder} is the current folder or above it; name a folder for this run, such as runs/first"
        )


def announced_changes(resolved: Resolved[Recipe], folder: Path) -> tuple[Recipe | None, list[str]]:
    """The recipe of the run in `folder` that is continued, and a line for every change of it that matters; None if it is new.

    Call it before `open_run`, which writes the new configuration.
    """
    if not has_steps(folder):
        return None, []
    announced = _changes(resolved, folder / CONFIG, lambda path: bool(ANNOUNCED.fullmatch(path)))
    return load_recipe(str(folder / CONFIG)).value, announced


def result_changes(resolved: Resolved[Recipe], folder: Path) -> list[str]:
    """A line for every field that decides the result of the run in `folder` and that it has otherwise than this recipe.

    The recipe need not be completed by its data. Raises UserError where the run's configuration cannot be read.
    """
    given = {path for path, value, _ in resolved.rows() if value is not None or path not in DERIVED}
    return _changes(resolved, folder / CONFIG, lambda path: path in given and not WATCHED.fullmatch(path))


def continuation_lines(resolved: Resolved[Recipe], folder: Path, layout: Layout) -> list[str]:
    """What a start of the run in `folder` would say before it goes on: the step, every change that matters, a jump of the rate.

    Empty where the run is new.
    """
    newest = checkpoint.latest(folder / CHECKPOINTS)
    if newest is None:
        return []
    before, changes = announced_changes(resolved, folder)
    step = step_of(newest) or 0
    jump = rate_change(before, layout, step) if before else None
    return [f"continues at step {step} of {layout.steps}", *changes, *([jump] if jump else [])]


def rate_change(before: Job, now: Layout, step: int) -> str | None:
    """How the learning rate goes on after `step` steps, if another schedule, length or rate makes it jump; else None."""
    steps = dataclasses.replace(now, job=before).steps  # of a budget of tokens, too
    if step >= now.steps or (before.optim, steps) == (now.job.optim, now.steps):
        return None
    old = before.optim.lr * lr_multiplier(before.optim.schedule, min(step, steps) - 1, steps)
    new = now.job.optim.lr * lr_multiplier(now.job.optim.schedule, step, now.steps)
    if abs(new - old) <= 0.1 * old:
        return None
    return f"the learning rate jumps from {old:.3g} in step {step} to {new:.3g} in step {step + 1}"


def _changes(resolved: Resolved[Recipe], config: Path, counted: Callable[[str], bool]) -> list[str]:
    """Fields that differ from the configuration in the file `config`, of those that are not free and are `counted` by their path."""
    before = {path: value for path, value, _ in load_recipe(str(config)).rows()}
    now = {path: value for path, value, _ in resolved.rows()}
    changes = []
    for path in [*now, *(path for path in before if path not in now)]:
        value, was = now.get(path), before.get(path)
        # A section without keys is a leaf of its own; its missing keys are compared one by one.
        if value == was or {} in (value, was) or FREE.fullmatch(path) or not counted(path):
            continue
        here = resolved.at(path) if path in now else f"{path} is not given"
        changes.append(f"{here}, was {json.dumps(was)}" if path in before else f"{here}, was not given")
    return changes
