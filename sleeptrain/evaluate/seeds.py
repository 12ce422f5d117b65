"""Runs of one recipe with several seeds as one result: mean, range and interval over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sleeptrain.evaluate.intervals import Interval, mean_interval
from sleeptrain.evaluate.measure import Measurement
from sleeptrain.recipe.recipe import Recipe


@dataclass(frozen=True)
class RunResult:
    """Measurements of one run at one step, for one or more numbers of passes."""

    name: str
    run: str
    """Path of the run folder."""
    step: int
    tokens: int
    """Tokens trained on."""
    seconds: float | None
    """Total time of the training steps; None if the run has no metrics."""
    recipe: Recipe
    measured: Sequence[Measurement]

    @property
    def seed(self) -> int:
        """The seed of the initial weights and of the order of the data."""
        return self.recipe.train.seed

    @property
    def trained_passes(self) -> int:
        """The largest number of passes in training."""
        return self.recipe.sleep.max_passes


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seeds alone, at the same step."""

    name: str
    runs: Sequence[RunResult]

    @property
    def first(self) -> RunResult:
        """A run that stands for what all runs have in common."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the runs."""
        return [run.seed for run in self.runs]

    @property
    def horizon(self) -> int | None:
        """Half-life at initialisation of the slowest heads, `model.deltanet.horizon`."""
        return self.first.recipe.model.deltanet.horizon

    @property
    def seconds(self) -> float | None:
        """Mean time of the training steps; None if a run has no metrics."""
        times = [run.seconds for run in self.runs if run.seconds is not None]
        return float(np.mean(times)) if len(times) == len(self.runs) else None

    def by_passes(self) -> Iterator[tuple[int, list[Measurement]]]:
        """For each number of passes the measurements of all runs."""
        for passes in zip(*(run.measured for run in self.runs), strict=True):
            yield passes[0].passes, list(passes)

    def as_trained(self) -> list[Measurement] | None:
        """The measurements of all runs at the number of passes they were trained with; None if that was not measured."""
        return next((measured for passes, measured in self.by_passes() if passes == self.first.trained_passes), None)


def group_by_recipe(results: Sequence[RunResult]) -> list[SeedGroup]:
    """The runs by recipe and step, in the order of their first run."""
    groups: list[list[RunResult]] = []
    for result in results:
        for group in groups:
            alike = _without_seed(group[0].recipe) == _without_seed(result.recipe) and group[0].step == result.step
            if alike and result.seed not in [run.seed for run in group]:
                group.append(result)
                break
        else:
            groups.append([result])
    return [SeedGroup(group[0].name, group) for group in groups]


def _without_seed(recipe: Recipe) -> Recipe:
    """The recipe without its seed and what changes nothing that is learned."""
    default = Recipe()
    train = replace(
        recipe.train, seed=0, micro=default.train.micro, recompute=default.train.recompute, offload=default.train.offload,
        kernels=default.train.kernels, cuda_graphs=default.train.cuda_graphs,
    )  # fmt: skip
    return replace(
        recipe, train=train, run_dir=None, data=default.data, mesh=default.mesh, log=default.log,
        checkpoint=default.checkpoint,
    )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A share of one label value over the seeds of a group, or of one run over its problems."""

    values: Sequence[float]
    """The share of each run."""
    interval: Interval | None
    """95 %: over seeds if there are several, else over distinct problems."""

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        low, high = self.interval or (self.mean, self.mean)
        spread = f" {min(self.values):.3f}–{max(self.values):.3f}" if len(self.values) > 1 else ""
        return f"{self.mean:.3f} [{max(low, 0):.3f}, {min(high, 1):.3f}]{spread}"


def summary(measured: Sequence[Measurement], value: int, share: str, interval: str) -> Summary | None:
    """The share of a label value, by the names that `Tally.summary` gives it; None where a run has none."""
    tables = [m.by_value[value].summary() for m in measured if value in m.by_value]
    if len(tables) < len(measured) or any(table[share] is None for table in tables):
        return None
    shares = [table[share] for table in tables]
    return Summary(shares, mean_interval(shares) if len(shares) > 1 else tables[0][interval])


def mean_of(measured: Sequence[Measurement], value: Callable[[Measurement], Any]) -> float | None:
    """The mean of a quantity over runs; None where a run has none."""
    values = [value(m) for m in measured]
    return None if any(v is None for v in values) else float(np.mean(values))
