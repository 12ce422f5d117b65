"""Results of a study's runs: sizes, costs and final losses of each, and the runs of one setting over their seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sleeptrain.errors import UserError
from sleeptrain.evaluate.intervals import Interval, mean_interval
from sleeptrain.study.config import SEED
from sleeptrain.study.points import Point
from sleeptrain.study.run_log import RunLog, finite_number, read_run

LossKind = Literal["evaluation", "held out", "training"]


@dataclass(frozen=True)
class StudyRun:
    """A run of a study that has been trained to its end."""

    point: Point
    log: RunLog
    measured: Mapping[str, Any] | None
    """The report of `sleeptrain eval`."""

    @cached_property
    def params(self) -> int | None:
        """Number of parameters, a tied head counted once; None where the configuration cannot be read."""
        from sleeptrain.recipe.load_trained import parameter_shapes

        if self.log.recipe is None or self.log.recipe.model.vocab is None:
            return None
        return sum(int(np.prod(shape)) for shape in parameter_shapes(self.log.recipe).values())

    @property
    def passes(self) -> int | None:
        """The largest number of passes in training."""
        return self.log.recipe.sleep.max_passes if self.log.recipe else None

    @property
    def tokens(self) -> float | None:
        """Real tokens trained on."""
        return self.log.last("tokens")

    @property
    def flops(self) -> float | None:
        """Model FLOPs of the whole training."""
        totals = self.log.flops()
        return totals[-1] if totals else None

    @property
    def seconds(self) -> float | None:
        """Time of all training steps."""
        totals = self.log.seconds()
        return totals[-1] if totals else None

    def measurements(self) -> list[Mapping[str, Any]]:
        """The measurements of `sleeptrain eval`, that with the passes of training first."""
        return list(self.measured["runs"][0]["measured"]) if self.measured else []

    def loss(self, kind: LossKind) -> float | None:
        """The final loss in nats per target: of `sleeptrain eval`, of the last evaluation while training, or of the last steps."""
        if kind == "evaluation":
            return next((finite_number(m["loss"]) for m in self.measurements()), None)
        return self.log.last("eval_loss") if kind == "held out" else self.log.training_loss

    def shares(self, share: str, passes: int | None = None) -> dict[int, float]:
        """`accuracy` or `exact` by value of the label, evaluated with `passes` (None: those of training)."""
        found = next((m for m in self.measurements() if passes in (None, m["passes"])), None)
        by_value = found["by_value"] if found else {}
        return {int(value): float(t[share]) for value, t in by_value.items() if t.get(share) is not None}


@dataclass(frozen=True)
class Setting:
    """The runs that differ in their seeds alone."""

    labels: Mapping[str, str]
    """The label of its value by axis, without the seeds."""
    runs: Sequence[StudyRun]

    @property
    def name(self) -> str:
        """The values of its axes."""
        return ", ".join(f"{axis.rpartition('.')[2]} {label}" for axis, label in self.labels.items()) or "all"

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the runs."""
        return [run.log.recipe.train.seed if run.log.recipe else -1 for run in self.runs]

    def values(self, of: Callable[[StudyRun], float | None]) -> list[float] | None:
        """A value of every run; None where one has none."""
        values = [of(run) for run in self.runs]
        return None if None in values else [float(v) for v in values if v is not None]

    def mean(self, of: Callable[[StudyRun], float | None]) -> float | None:
        """The mean of a value over the seeds; None where a run has none."""
        values = self.values(of)
        return float(np.mean(values)) if values else None

    def interval(self, of: Callable[[StudyRun], float | None]) -> Interval | None:
        """95 % interval of that mean over the seeds; None for one seed."""
        values = self.values(of)
        return mean_interval(values) if values else None


@dataclass(frozen=True)
class Results:
    """All runs of a study that are done, and a line for each that is not."""

    runs: Sequence[StudyRun]
    missing: Sequence[str]

    @property
    def loss_kind(self) -> LossKind:
        """The best kind of loss that every run has; losses of different kinds cannot be compared."""
        kinds: tuple[LossKind, ...] = ("evaluation", "held out")
        return next((kind for kind in kinds if all(run.loss(kind) is not None for run in self.runs)), "training")

    def settings(self) -> list[Setting]:
        """The runs by the values of all axes but the seeds."""
        groups: dict[tuple[tuple[str, str], ...], list[StudyRun]] = {}
        for run in self.runs:
            key = tuple((axis, label) for axis, label in run.point.labels.items() if axis != SEED)
            groups.setdefault(key, []).append(run)
        return [Setting(dict(key), runs) for key, runs in groups.items()]

    def best(self, rates: Sequence[str]) -> list[Setting]:
        """For all values of the other axes the setting of the tuned `rates` with the lowest mean loss, of those with the most runs.

        A rate at which most seeds diverge and fail would win by the one that did not.
        """
        groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
        for setting in self.settings():
            key = tuple((axis, label) for axis, label in setting.labels.items() if axis not in rates)
            groups.setdefault(key, []).append(setting)
        kind = self.loss_kind

        def order(setting: Setting) -> tuple[int, float]:
            mean = setting.mean(lambda run: run.loss(kind))
            return -len(setting.runs), float("inf") if mean is None else mean

        return [min(group, key=order) for group in groups.values()]


def read_results(points: Sequence[Point]) -> Results:
    """The results of the points whose runs are done as the study now asks. The others are named with how they stand."""
    runs, missing = list[StudyRun](), list[str]()
    for point in points:
        try:
            log = read_run(point.folder, str(point.folder))
        except UserError:
            missing.append(f"{point.folder}: not begun")
            continue
        if log.state != "done":
            missing.append(f"{point.folder}: {log.state} at step {log.rows[-1]['step']}")
        elif log.recipe is not None and (changes := point.outdated()):
            missing.append(f"{point.folder}: done otherwise than the study asks now: {'; '.join(changes)}")
        else:
            run = StudyRun(point, log, point.measured())
            runs.append(run)
            missing += [f"{point.folder}: {problem}" for problem in log.problems]
            if point.evaluation is not None and run.measured is None:
                missing.append(f"{point.folder}: done, but not measured by `sleeptrain eval` as the study asks now")
    return Results(runs, missing)
