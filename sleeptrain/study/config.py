"""A study file: the recipe, the axes of the grid, how learning rates follow from them, and what is measured afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sleeptrain.config import Problem, Resolved
from sleeptrain.recipe.kinds import load_file

SEED = "train.seed"


@dataclass(frozen=True)
class TunedRate:
    """A rate that is tried at several values; the report takes the best one for every setting of the axes."""

    tune: list[float]
    """The values, an axis of the grid."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        good = self.tune and all(0 < value < math.inf for value in self.tune)
        return [] if good else [Problem("tune", "is a list of rates above 0")]


@dataclass(frozen=True)
class TransferredRate:
    """A rate that follows from that of one size: value * (by / at) ^ power."""

    value: float
    """The rate of the size at which it was tuned."""
    by: str
    """Dotted path of the size in the recipe, such as model.width."""
    at: float
    """That size."""
    power: float = -1.0
    """Exponent of the ratio of sizes."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        names = [name for name in ("value", "at") if not 0 < getattr(self, name) < math.inf]
        return [Problem(name, "must be above 0") for name in names]

    def rate(self, size: float) -> float:
        """The rate of a size."""
        return float(self.value * (size / self.at) ** self.power)

    def rule(self, key: str) -> str:
        """The rule in words."""
        return f"{key} = {self.value:g} * ({self.by} / {self.at:g})^{self.power:g}"


@dataclass(frozen=True)
class StudyEvaluation:
    """`sleeptrain eval` of every run that is done."""

    passes: list[int] = field(default_factory=list)
    """Numbers of passes beside that of training."""
    data: str | None = None
    """A folder of shards for all runs; null: the data of each."""
    samples: int | None = None
    """Number of samples; null: all."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        problems = [] if all(n >= 1 for n in self.passes) else [Problem("passes", "are numbers of at least 1")]
        few = self.samples is not None and self.samples < 1
        return problems + ([Problem("samples", "must be at least 1; null takes all")] if few else [])


@dataclass(frozen=True)
class TargetSize:
    """A size and a number of tokens for which the fit predicts the loss."""

    params: float
    """Parameters of the model, a tied head counted once."""
    tokens: float
    """Training tokens."""

    def problems(self) -> list[Problem]:
        """Problems of this section alone."""
        names = [name for name in ("params", "tokens") if not 0 < getattr(self, name) < math.inf]
        return [Problem(name, "must be above 0") for name in names]


@dataclass(frozen=True)
class PublishedResult:
    """A result of others, which the report sets beside ours."""

    setting: dict[str, Any]
    """Values by axis."""
    value: str
    """The result in words."""
    source: str
    """Where it is published."""


@dataclass(frozen=True)
class Study:
    """A grid of runs of one recipe."""

    recipe: str
    """A recipe's file, or the name of one in configs/."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]]
    """By dotted key the values that it takes; or by a name of one's own several steps of a ladder, each with a name and the keys
    that move together. The last axis changes fastest."""
    set: dict[str, Any] = field(default_factory=dict)
    """Changes of the recipe for all runs."""
    rates: dict[str, TunedRate | TransferredRate] = field(default_factory=dict)
    """Learning rates by dotted key."""
    evaluate: StudyEvaluation | None = None
    """What is measured of every run that is done; null: nothing."""
    extrapolate: dict[str, TargetSize] = field(default_factory=dict)
    """Sizes by name for which the fitted law predicts the loss."""
    published: list[PublishedResult] = field(default_factory=list)
    """Results of others beside ours."""
    run_dir: str | None = None
    """The folder of the runs; null: runs/study/<name of the study>."""

    def problems(self) -> list[Problem]:
        """Problems of the grid as a whole."""
        return [*self._axes(), *self._keys()]

    def _axes(self) -> Iterator[Problem]:
        if not self.axes:
            yield Problem("axes", "is empty; give at least one, such as {train.seed: [0, 1, 2]}")
        for name, axis in self.axes.items():
            if not axis:
                yield Problem("axes", f"{name} has no values")
            if isinstance(axis, list) and any(value in axis[:place] for place, value in enumerate(axis)):
                yield Problem("axes", f"{name} has a value twice, which would be the same run twice")
            if isinstance(axis, dict) and (empty := [step for step, keys in axis.items() if not keys]):
                yield Problem("axes", f"{name}: {', '.join(empty)} sets no key")
        for result in self.published:
            if unknown := sorted(result.setting.keys() - self.axes.keys()):
                yield Problem("published", f"{', '.join(unknown)} is not an axis")

    def _keys(self) -> Iterator[Problem]:
        """Keys that two axes set, or that the study itself decides."""
        moved = [(name, key) for name, axis in self.axes.items() for key in keys_of(name, axis)]
        moved += [("rates", key) for key in self.rates]
        for place, (name, key) in enumerate(moved):
            if key == "run_dir":
                yield Problem(
                    "axes", f"{name} sets run_dir, but every run has its own folder below the study's run_dir"
                )
            for other, before in moved[:place]:
                if other != name and (f"{key}.".startswith(f"{before}.") or f"{before}.".startswith(f"{key}.")):
                    yield Problem("axes" if name != "rates" else "rates", f"{key} is set by {name} and by {other}")
        if "run_dir" in self.set:
            yield Problem("set", "every run has its own folder below the study's run_dir; set that")


def keys_of(name: str, axis: Sequence[Any] | dict[str, dict[str, Any]]) -> list[str]:
    """The dotted keys that an axis sets."""
    return list(dict.fromkeys(key for keys in axis.values() for key in keys)) if isinstance(axis, dict) else [name]


def load_study(name: str, overrides: Sequence[str] = ()) -> Resolved[Study]:
    """Read a study: a file, or the name of one in configs/study. Raises UserError that lists every error in it."""
    return load_file(name, overrides, Study, "study")
