"""Steps of a budget of real tokens, against a sum over steps."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sleeptrain.data.budget import SourceSize, epochs_of_run, steps_of_budget
from sleeptrain.data.mixture import Mix

SIZES = (SourceSize(10, 237), SourceSize(4, 400), SourceSize(0, 0))
"""Mean rows of 23.7 and 100 tokens, and a source without any."""


def tokens_after(steps: int, shares: list[tuple[Fraction, Fraction]], rows: int) -> Fraction:
    return sum((rows * (a * Fraction("23.7") + b * 100) for a, b in shares[:steps]), Fraction(0))


@pytest.mark.parametrize("budget", [1, 700, 6999, 7000, 7001, 123_456])
def test_rows_of_several_sources_give_the_budget_in_the_proportions_of_the_mix(budget: int) -> None:
    steps = steps_of_budget(budget, Mix.by_size([10, 4, 0]), SIZES, 7)
    shares = [(Fraction(10, 14), Fraction(4, 14))] * 10_000
    assert tokens_after(steps - 1, shares, 7) < budget <= tokens_after(steps, shares, 7)


@pytest.mark.parametrize("budget", [1, 200, 1000, 5000])
def test_proportions_that_change_are_followed_step_by_step(budget: int) -> None:
    mix = Mix((((0, 1.0), (8, 0.0)), ((0, 0.0), (8, 1.0)), ((0, 0.0),)))
    steps = steps_of_budget(budget, mix, SIZES, 2)
    shares = [(1 - Fraction(min(step, 8), 8), Fraction(min(step, 8), 8)) for step in range(1000)]
    assert tokens_after(steps - 1, shares, 2) < budget <= tokens_after(steps, shares, 2)


def test_epochs_of_a_run_are_those_of_its_shares() -> None:
    """Steps before the last point, after it, and without any."""
    mix = Mix((((0, 1.0), (8, 0.0)), ((0, 0.0), (8, 1.0)), ((0, 0.0),)))
    for steps in (0, 5, 8, 30):
        first = sum(max(0, 8 - step) / 8 for step in range(steps))
        expected = [first * 2 / 10, (steps - first) * 2 / 4, 0.0]
        assert epochs_of_run(steps, mix, SIZES, 2) == pytest.approx(expected, rel=1e-9)
    assert epochs_of_run(6, Mix.by_size([10, 4, 0]), SIZES, 7) == [3.0, 3.0, 0.0]


def test_full_epochs_are_exact() -> None:
    assert steps_of_budget(3 * 637, Mix.by_size([10, 4, 0]), SIZES, 7) == 6
