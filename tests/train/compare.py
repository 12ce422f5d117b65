"""Compares two trainings that differ in layout: the rows of metrics.jsonl, and the weights after the last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from torch import Tensor

Rows, Weights = Sequence[Mapping[str, Any]], Mapping[str, Tensor]

EPS = "optim.eps=1e-5"
"""Override for compared trainings. Adam divides a gradient by its own size plus eps. With 1e-8 rounding decides the update of a weight
whose gradient is about 1e-8, and the weight differs by a share of the learning rate."""
WEIGHTS = 1e-5
"""Bound of the relative distance of a parameter. One element with a wrong gradient moves by the learning rate in a step and exceeds it."""


def assert_same_training(
    found: tuple[Rows, Weights, *tuple[Any, ...]],
    expected: tuple[Rows, Weights, *tuple[Any, ...]],
    *,
    keys: Sequence[str] = ("loss", "grad_norm", "state_norm"),
) -> None:
    """Metrics `keys` are equal to 1e-5 in every step, gradients of states to 1e-4, each parameter within `WEIGHTS`."""
    near = {**dict.fromkeys(keys, 1e-5), "state_gradient": 1e-4}
    for key, rel in near.items():
        for step, (ours, theirs) in enumerate(zip(found[0], expected[0], strict=True), 1):
            assert ours[key] == pytest.approx(theirs[key], rel=rel), (
                f"step {step}: {key} {ours[key]}, not {theirs[key]}"
            )
    assert [row["targets"] for row in found[0]] == [row["targets"] for row in expected[0]]
    assert found[1].keys() == expected[1].keys()
    apart = {name: float((found[1][name] - weight).norm()) for name, weight in expected[1].items()}
    wrong = {name: apart[name] for name, weight in expected[1].items() if not apart[name] <= WEIGHTS * weight.norm()}
    assert not wrong, f"distances {wrong}"


def assert_clipped(rows: Rows, clip: float) -> None:
    """The norm of gradients was above `clip` in every step, so that all weights depend on it."""
    assert all(row["grad_norm"] > clip for row in rows), "some gradient was not clipped"
