"""The points of a study's grid: a recipe with changes, a run folder and commands for each, checked before anything runs."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sleeptrain.config import Resolved
from sleeptrain.config.tree import dump, escape, plain, select
from sleeptrain.data.sources import DataMissing
from sleeptrain.errors import UserError
from sleeptrain.plan import planned_world, resolve_data
from sleeptrain.recipe import check_batch, check_run
from sleeptrain.recipe.continuation import announced_changes, result_changes
from sleeptrain.recipe.load_trained import initial_weights
from sleeptrain.recipe.recipe import Recipe, load_recipe
from sleeptrain.recipe.task_files import with_build_command
from sleeptrain.run.folder import seed_folder
from sleeptrain.run.outcome import read_outcome
from sleeptrain.study.config import SEED, Study, StudyEvaluation, TransferredRate, TunedRate
from sleeptrain.study.run_log import read_json

EVALUATION = "evaluation"
"""Folder in the run folder with the report of `sleeptrain eval`."""


@dataclass(frozen=True)
class Choice:
    """A value of an axis: its label, and what it changes in the recipe by dotted key."""

    axis: str
    label: str
    changes: Mapping[str, Any]
    slug: str
    """Its part of the name of a run folder."""


@dataclass(frozen=True)
class Point:
    """One run of a study."""

    index: int
    labels: Mapping[str, str]
    """The label of its value by axis."""
    recipe: str
    changes: tuple[str, ...]
    """`key=value` words, the last one of which names the run folder."""
    folder: Path
    resolved: Resolved[Recipe]
    evaluation: StudyEvaluation | None

    @property
    def processes(self) -> int:
        """The number of processes that its mesh needs."""
        return planned_world(self.resolved.value, None)

    @property
    def train_command(self) -> list[str]:
        """The command that trains it, or continues it."""
        launcher = ["python", "-m", "sleep_launch.local", "--processes", str(self.processes), "--"]
        return [*(launcher if self.processes > 1 else []), "sleeptrain", "train", self.recipe, *self.changes]

    @property
    def eval_command(self) -> list[str] | None:
        """The command that measures it once it is trained; None if the study does not ask for it."""
        if self.evaluation is None:
            return None
        own = self.resolved.value.sleep.max_passes
        passes = [own, *(n for n in dict.fromkeys(self.evaluation.passes) if n != own)]
        data = ["--data", self.evaluation.data] if self.evaluation.data else []
        samples = ["--samples", str(self.evaluation.samples)] if self.evaluation.samples else []
        measure = ["sleeptrain", "eval", str(self.folder), "--passes", ",".join(map(str, passes)), *data, *samples]
        return [*measure, *self._out]

    @property
    def _out(self) -> list[str]:
        """The end of `eval_command`, which a report does not name as its command."""
        return ["--out", str(self.folder / EVALUATION)]

    def trained(self) -> bool:
        """Whether its run has ended as its recipe is now: longer training, for example, continues it."""
        done = read_outcome(self.folder).get("state") == "done"
        return done and not announced_changes(self.resolved, self.folder)[1]

    def outdated(self) -> list[str]:
        """A line for every field that decides the result of a run and that its run has otherwise than the study asks now."""
        return [line.replace("(command line)", "(the study)") for line in result_changes(self.resolved, self.folder)]

    def measured(self) -> dict[str, Any] | None:
        """The report of `eval_command` on the weights that the run ended with; None where there is none."""
        report = read_json(self.folder / EVALUATION / "report.json")
        if report is None or self.eval_command is None:
            return None
        try:
            command, step = shlex.split(report["command"]), report["runs"][0]["step"]
        except (LookupError, TypeError, ValueError):
            return None
        now = read_outcome(self.folder).get("step")
        return report if step == now and command == self.eval_command[: -len(self._out)] else None

    def left(self) -> list[list[str]]:
        """The commands that are still to run."""
        if not self.trained():
            return [command for command in (self.train_command, self.eval_command) if command]
        return [self.eval_command] if self.eval_command and self.measured() is None else []


def grid(study: Study) -> list[list[Choice]]:
    """The choices of every axis; tuned rates are axes, before that of the seeds where this is the last."""
    axes: dict[str, Any] = dict(study.axes)
    rates = {key: rate.tune for key, rate in study.rates.items() if isinstance(rate, TunedRate)}
    seeds = {SEED: axes.pop(SEED)} if list(axes)[-1:] == [SEED] else {}
    axes = axes | rates | seeds
    short = [name.rpartition(".")[2] for name in axes]
    found = []
    for name, axis in axes.items():
        rungs = axis if isinstance(axis, dict) else {dump(plain(value)): {name: value} for value in axis}
        shown = name if short.count(name.rpartition(".")[2]) > 1 else name.rpartition(".")[2]
        slugs = [re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-.")[:40] for label in rungs]
        distinct = len(set(slugs)) == len(slugs) and all(slugs)
        named = [f"{shown}-{slug if distinct else place}" for place, slug in enumerate(slugs)]
        found.append([Choice(name, label, rungs[label], slug) for label, slug in zip(rungs, named, strict=True)])
    return found


def make_points(study: Study, name: str) -> list[Point]:
    """All points of a study that was loaded as `name`, in order. Raises UserError with what is wrong with any point's recipe."""
    base = base_folder(study, name)
    points, errors = list[Point](), dict[str, list[str]]()
    every = list(itertools.product(*grid(study)))
    for index, choices in enumerate(every):
        folder = _folder(base, choices)
        try:
            words, resolved = _resolve(study, choices, folder)
        except UserError as error:
            for line in error.errors:
                errors.setdefault(line.replace("(command line)", "(the study)"), []).append(str(folder))
            continue
        labels = {choice.axis: choice.label for choice in choices}
        points.append(Point(index, labels, study.recipe, tuple(words), folder, resolved, study.evaluate))
    if errors:
        raise UserError([_in_runs(line, runs, len(every)) for line, runs in errors.items()])
    return points


def base_folder(study: Study, name: str) -> Path:
    """The folder of the runs of a study that was loaded as `name`."""
    return Path(study.run_dir or Path("runs") / "study" / Path(name).stem)


def _in_runs(line: str, runs: Sequence[str], count: int) -> str:
    where = "every run" if len(runs) == count else f"{runs[0]}{f' and {len(runs) - 1} more' if len(runs) > 1 else ''}"
    return f"{line} [{where}]"


def _folder(base: Path, choices: Sequence[Choice]) -> Path:
    """The run folder: the values of the axes; runs that differ in the seed alone lie in one folder, as with `train --seeds`."""
    named = [choice.slug for choice in choices if choice.axis != SEED]
    seeds = [choice for choice in choices if choice.axis == SEED]
    folder = base / "_".join(named) if named else base
    return seed_folder(folder, int(seeds[0].changes[SEED])) if seeds and seeds[0].label.isdecimal() else folder


def _resolve(study: Study, choices: Sequence[Choice], folder: Path) -> tuple[list[str], Resolved[Recipe]]:
    """The words and the recipe of one point. Rates that follow from a size are computed from the recipe without them."""
    changes = {**study.set, **{key: value for choice in choices for key, value in choice.changes.items()}}
    words = [f"{key}={dump(plain(value, escape))}" for key, value in changes.items()]
    words.append(f"run_dir={dump(str(folder))}")
    resolved, derived = load_recipe(study.recipe, words), list[str]()
    for key, rate in study.rates.items():
        if isinstance(rate, TransferredRate):
            size = select(resolved.value, rate.by.split("."))
            if isinstance(size, bool) or not isinstance(size, int | float) or size <= 0:
                raise UserError(
                    f"rates.{key}: by = {rate.by} must name a number above 0 in the recipe, and that is {size!r}"
                )
            derived.append(f"{key}={rate.rate(size):.6g}")
    words = [*words[:-1], *derived, words[-1]]
    return words, load_recipe(study.recipe, words) if derived else resolved


def check_data(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points with recipes completed by their data, and an error for all that stands against running them.

    Checked are batch and mesh, that the data is there and fits, that a run folder holds no other run, and that the weights of
    `init_from` are there and fit, unless another point trains them.
    """
    complete, errors = list[Point](), dict[str, list[str]]()
    trained = {str(point.folder) for point in points}
    for point in points:
        try:
            complete.append(_complete(point, trained))
        except UserError as error:
            for line in error.errors:
                errors.setdefault(line.replace("(command line)", "(the study)"), []).append(str(point.folder))
    return complete, [_in_runs(line, runs, len(points)) for line, runs in errors.items()]


def _complete(point: Point, trained: Container[str]) -> Point:
    check_batch(point.resolved, point.processes)
    resolved, layout = resolve_data(point.resolved)
    if layout.assumed is not None:
        raise UserError(list(_missing(point.resolved)))
    check_run(resolved, point.folder, layout.manifest)
    if resolved.value.init_from not in trained:
        initial_weights(resolved, point.recipe)
    return replace(point, resolved=resolved)


def _missing(resolved: Resolved[Recipe]) -> Iterator[str]:
    for source in resolved.value.data.sources:
        if not Path(source.path).exists():
            yield from with_build_command(DataMissing(Path(source.path), "does not exist; build it"))
