"""Intervals: against published and simulated values, over problems, over seeds, and of differences."""

import numpy as np
import pytest

from sleeptrain.evaluate.intervals import (
    difference_interval,
    hull,
    mean_interval,
    problem_difference_interval,
    share_interval,
)


def test_many_problems_of_one_answer_have_the_wilson_interval():
    low, high = share_interval([1] * 8000 + [0] * 2000, [1] * 10000)
    p, n, z = 0.8, 10000, 1.960201  # the 97.5 % quantile of Student's t with 9,999 degrees of freedom
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    assert (low, high) == pytest.approx(
        ((middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)), abs=1e-7
    )
    assert share_interval([], []) is None and share_interval([3], [4]) == (0.0, 1.0)


@pytest.mark.parametrize("count", [3, 1000, 6640])
def test_an_interval_contains_its_share(count):
    assert share_interval([1] * count, [1] * count)[1] == 1 and share_interval([0] * count, [1] * count)[0] == 0


def test_intervals_change_gradually():
    """Where all problems have one share, or all but a token of one."""
    alike, almost = share_interval([5] * 20, [16] * 20), share_interval([5] * 19 + [6], [16] * 20)
    assert alike == pytest.approx(almost, abs=0.01)
    low, high = share_interval([1] * 20, [49] * 20)
    assert low < 1 / 49 < high and high - low > 0.01


def test_a_difference_over_problems_is_that_of_resampled_problems():
    random = np.random.default_rng(1)
    count = random.integers(1, 9, size=80)
    difficulty = random.beta(1, 1, size=80)
    a, b = random.binomial(count, difficulty), random.binomial(count, difficulty * 0.8)
    draws = random.integers(80, size=(20000, 80))
    resampled = a[draws].sum(1) / count[draws].sum(1) - b[draws].sum(1) / count[draws].sum(1)
    low, high = problem_difference_interval(a, count, b, count)
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.01)
    assert problem_difference_interval([1], [1], [0], [1]) is None


def test_hull():
    assert hull((0, 2), (1, 3)) == (0, 3) and hull((0, 1), None) is None


def test_repeated_problems_do_not_narrow_an_interval():
    right, count = [1, 0, 1, 1, 0, 1, 0, 1, 1, 1], [1] * 10
    assert share_interval([20 * r for r in right], [20] * 10) == pytest.approx(share_interval(right, count))
    tokens = share_interval([1] * 140 + [0] * 60, [1] * 200)
    problems = share_interval([20 * r for r in right], [20] * 10)
    assert problems[1] - problems[0] > 3 * (tokens[1] - tokens[0])


def test_the_interval_covers_the_share_of_a_simulation():
    """Thirty problems, each asked some times, whose own difficulty decides most of it: intervals of 95 % cover .6 about so often."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        difficulty = random.beta(0.6, 0.4, size=30)
        count = np.full(30, 16)
        low, high = share_interval(random.binomial(count, difficulty), count)
        covered += low <= 0.6 <= high
    assert 0.93 < covered / 2000 < 0.975


def test_the_mean_over_seeds_has_students_interval():
    # t(0.975, 2) = 4.302653; the standard error of 1, 2, 3 is 1 / sqrt(3).
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert mean_interval([1.0]) is None and mean_interval([2.0, 2.0]) == (2, 2)


def test_differences_are_paired_or_welchs():
    from scipy.stats import ttest_ind  # here, since .venv-engines, which collects all tests, has no scipy

    a, b = [0.9, 0.5, 0.7], [0.8, 0.4, 0.6]
    low, high = difference_interval(a, b, paired=True)
    assert low == pytest.approx(0.1, abs=1e-9) and high == pytest.approx(0.1, abs=1e-9)
    low, high = difference_interval(a, b, paired=False)
    # Equal variances of .04 and sizes of 3: four degrees of freedom, t(0.975, 4) = 2.776445.
    spread = 2.776445 * (2 * 0.04 / 3) ** 0.5
    assert (low, high) == pytest.approx((0.1 - spread, 0.1 + spread), abs=1e-6)
    uneven = difference_interval([0.9, 0.5, 0.7, 0.71], [0.6, 0.61], paired=False)
    expected = ttest_ind([0.9, 0.5, 0.7, 0.71], [0.6, 0.61], equal_var=False).confidence_interval(0.95)
    assert uneven == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert difference_interval(a, [0.1], paired=False) is None
    assert difference_interval([0.5, 0.5], [0.25, 0.25], paired=False) == (0.25, 0.25)
