"""What the folder of a run says without its weights: rows of metrics, configuration, how it ended, and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.recipe.recipe import Recipe, load_recipe
from sleeptrain.run.folder import CONFIG, MANIFEST
from sleeptrain.run.outcome import OUTCOME, read_outcome
from sleeptrain.train.log import read_metrics

LAST = 0.05
"""Share of the steps at the end over which training losses are averaged; they differ from batch to batch."""


@dataclass(frozen=True)
class RunLog:
    """A run that has logged at least one step."""

    name: str
    folder: Path
    rows: Sequence[dict[str, Any]]
    state: str
    """`running`, `done`, `stopped`, `failed` or `unknown`."""
    recipe: Recipe | None
    """None where config.yaml is missing or cannot be read."""
    problems: Sequence[str]
    """What is damaged or missing in the folder."""

    def column(self, name: str) -> list[float | None]:
        """One value of every row; None where it is missing or no number."""
        return [finite_number(row.get(name)) for row in self.rows]

    def has(self, name: str) -> bool:
        """Whether any row has this value."""
        return any(value is not None for value in self.column(name))

    def last(self, name: str) -> float | None:
        """The last value of a column; None where there is none."""
        return next((value for value in reversed(self.column(name)) if value is not None), None)

    @property
    def steps(self) -> list[float]:
        """The number of every logged step."""
        return [float(row["step"]) for row in self.rows]

    @property
    def final_rows(self) -> Sequence[dict[str, Any]]:
        """The rows of the last LAST of the run, at least one."""
        return self.rows[-max(1, round(LAST * len(self.rows))) :]

    @property
    def training_loss(self) -> float | None:
        """Mean training loss over the last steps, in nats per target."""
        return mean([row.get("loss") for row in self.final_rows])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of its data; empty where it cannot be read."""
        return read_json(self.folder / MANIFEST) or {}

    def totals(self, name: Callable[[dict[str, Any]], float | None]) -> list[float] | None:
        """The running sum over the steps of a value of rows; None where a row has none, or a row was lost."""
        values = [name(row) for row in self.rows]
        if None in values or self.rows[0]["step"] != 1 or self.rows[-1]["step"] != len(self.rows):
            return None
        sums, total = [], 0.0
        for value in values:
            total += value or 0.0
            sums.append(total)
        return sums

    def seconds(self) -> list[float] | None:
        """Time of the training steps up to each step."""
        return self.totals(lambda row: finite_number(row.get("seconds")))

    def flops(self) -> list[float] | None:
        """Model FLOPs up to each step: those of all passes, without recompute."""
        return self.totals(_flops)


def _flops(row: dict[str, Any]) -> float | None:
    rate, seconds = finite_number(row.get("flops_per_second")), finite_number(row.get("seconds"))
    return None if rate is None or seconds is None else rate * seconds


def finite_number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def mean(values: Sequence[Any]) -> float | None:
    """The mean of the numbers among `values`; None without one."""
    numbers = [number for value in values if (number := finite_number(value)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where it is missing or damaged."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def read_run(folder: Path, name: str) -> RunLog:
    """The log of the run in `folder`. Raises UserError where it has not logged a step."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a run, such as runs/rule110-tiny")
    path = folder / "metrics.jsonl"
    try:
        written = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"{folder} holds no metrics of a run (metrics.jsonl: {error.strerror}); give the folder of a run, such as runs/rule110-tiny"
        ) from None
    rows = read_metrics(path)
    if not rows:
        raise UserError(f"{folder}: its metrics.jsonl has no step yet")
    problems = [f"{len(written) - len(rows)} lines of metrics.jsonl are damaged"] if len(written) > len(rows) else []
    state = str(read_outcome(folder).get("state", "unknown"))
    problems += [f"{OUTCOME} is missing or damaged"] if state == "unknown" else []
    recipe = None
    try:
        recipe = load_recipe(str(folder / CONFIG)).value
    except UserError as error:
        problems.append(f"{CONFIG} cannot be read: {error.errors[0]}")
    return RunLog(name, folder, rows, state, recipe, problems)
