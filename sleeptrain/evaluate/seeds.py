"""Runs of one recipe with several seeds as one result: mean, range and interval over the seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sleeptrain.evaluate.intervals import Interval, hull, mean_interval, share_interval
from sleeptrain.evaluate.measure import Measurement, Tally
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
    data: str
    """Hash of the data it was trained on."""
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
            alike = group[0].step == result.step and not differences(group[0], result)
            if alike and result.seed not in [run.seed for run in group]:
                group.append(result)
                break
        else:
            groups.append([result])
    names = [group[0].name for group in groups]
    return [
        SeedGroup(
            name if names.count(name) == 1 else f"{name} (step {group[0].step})",
            sorted(group, key=lambda run: run.seed),
        )
        for name, group in zip(names, groups, strict=True)
    ]


NOT_LEARNED = re.compile(
    r"run_dir|(mesh|log|checkpoint|eval)(\..*)?|data\.(sources|workers|cache|eval_split)(\..*)?"
    r"|train\.(seed|micro|recompute|offload|kernels|compile|cuda_graphs)"
)
"""Fields of a recipe that two runs of it may differ in."""


def differences(one: RunResult, other: RunResult) -> list[str]:
    """Dotted paths of the fields in which two runs differ, without the seed and what changes nothing that is learned."""
    a, b = (dict(_leaves(asdict(run.recipe))) for run in (one, other))
    found = [path for path in a | b if a.get(path) != b.get(path) and not NOT_LEARNED.fullmatch(path)]
    proportions = [[source.proportion for source in run.recipe.data.sources] for run in (one, other)]
    found += ["data.sources.proportion"] if proportions[0] != proportions[1] else []
    return [*found, "data"] if one.data != other.data else found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, child in value.items():
        yield from _leaves(child, f"{path}.{key}" if path else key)


@dataclass(frozen=True)
class Summary:
    """A share of one label value over the seeds of a group, or of one run over its problems."""

    values: Sequence[float]
    """The share of each run."""
    interval: Interval | None
    """95 % over distinct problems, and if there are several runs, over seeds, too: the smallest that contains both."""

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        low, high = self.interval or (self.mean, self.mean)
        spread = f" {min(self.values):.3f}–{max(self.values):.3f}" if len(self.values) > 1 else ""
        return f"{self.mean:.3f} [{low:.3f}, {high:.3f}]{spread}"


SHARES = {"accuracy": ("right", "tokens"), "exact": ("exact", "answers")}
"""The columns of a tally whose ratio is a share."""


def summary(measured: Sequence[Measurement], value: int, share: str) -> Summary | None:
    """A share of a label value over the runs of a group; None where a run has none."""
    tallies = [m.by_value[value] for m in measured if value in m.by_value]
    shares = [s for tally in tallies if (s := tally.share(*SHARES[share])) is not None]
    if len(shares) < len(measured):
        return None
    pooled = pool(tallies)
    interval = share_interval(*(pooled.by_problem(column) for column in SHARES[share]))
    if len(shares) > 1 and (over_seeds := mean_interval(shares)):
        interval = hull(interval, (max(0.0, over_seeds[0]), min(1.0, over_seeds[1])))
    return Summary(shares, interval)


def pool(tallies: Sequence[Tally]) -> Tally:
    """The counts of several runs over the same problems together."""
    pooled = Tally()
    for tally in tallies:
        for problem, counts in tally.items():
            pooled.add(problem, counts)
    return pooled


def mean_of(measured: Sequence[Measurement], value: Callable[[Measurement], Any]) -> float | None:
    """The mean of a quantity over runs; None where a run has none."""
    values = [value(m) for m in measured]
    return None if any(v is None for v in values) else float(np.mean(values))


def label_values(groups: Sequence[SeedGroup]) -> list[int]:
    """All label values that were measured, in ascending order."""
    return sorted({value for group in groups for r in group.runs for m in r.measured for value in m.by_value})
