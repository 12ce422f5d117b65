"""Confidence intervals over distinct problems and over seeds: of a share, a mean, and the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
Interval = tuple[float, float]


def share_interval(right: Sequence[float], count: Sequence[float]) -> Interval | None:
    """95 % interval of the share sum(right) / sum(count), whose units are problems; None without any.

    right, count   for each distinct problem, how much of it is right and how much there is

    What belongs to one problem (the tokens of an answer, repetitions of the problem) is not independent. So the interval is
    that of Wilson (1927) for the effective number of independent answers (Korn and Graubard 1998): the number at which
    binomial sampling would have the variance between problems. With one answer a problem it is the number of problems.
    """
    from scipy.stats import t

    r, n = np.asarray(right, float), np.asarray(count, float)
    total, problems = float(n.sum()), int((n > 0).sum())
    if not total:
        return None
    p = float(r.sum()) / total
    if problems == 1:
        return 0.0, 1.0
    variance = float(np.square(r - p * n).sum()) / total**2
    if p in (0, 1):
        effective: float = problems
    else:
        effective = min(p * (1 - p) / max(variance, 1e-300), total)
    z = float(t.ppf((1 + LEVEL) / 2, problems - 1))
    middle, spread = p + z * z / (2 * effective), z * math.sqrt(p * (1 - p) / effective + (z / (2 * effective)) ** 2)
    low, high = (middle - spread) / (1 + z * z / effective), (middle + spread) / (1 + z * z / effective)
    # At shares of 0 and 1 a bound equals the share, except for rounding.
    return max(0.0, min(low, p)), min(1.0, max(high, p))


def problem_difference_interval(
    a: Sequence[float], count_a: Sequence[float], b: Sequence[float], count_b: Sequence[float]
) -> Interval | None:
    """95 % interval of sum(a) / sum(count_a) - sum(b) / sum(count_b) over problems, which pose both; None for fewer than two.

    a, count_a, b, count_b   by problem, in one order: how much is right and how much there is
    """
    from scipy.stats import t

    if len(a) < 2:
        return None
    shares = [np.asarray(right, float) / np.sum(count) for right, count in ((a, count_a), (b, count_b))]
    weights = [np.asarray(count, float) / np.sum(count) for count in (count_a, count_b)]
    # The contribution of each problem to the difference of two ratio estimators (linearisation).
    parts = (shares[0] - shares[0].sum() * weights[0]) - (shares[1] - shares[1].sum() * weights[1])
    difference, problems = float(shares[0].sum() - shares[1].sum()), len(a)
    spread = float(t.ppf((1 + LEVEL) / 2, problems - 1)) * math.sqrt(
        float(np.square(parts).sum()) * problems / (problems - 1)
    )
    return difference - spread, difference + spread


def hull(*intervals: Interval | None) -> Interval | None:
    """The smallest interval that contains all of them; None if one is None."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of independent values, by Student's t distribution; None for fewer than two."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(sem(values))
    if error == 0:
        return mean, mean
    low, high = t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def difference_interval(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Interval | None:
    """95 % interval of mean(a) - mean(b): of the mean of a[i] - b[i] if `paired`, else by Welch (1947).

    None where one of them has fewer than two values.
    """
    from scipy.stats import t

    if min(len(a), len(b)) < 2:
        return None
    if paired:
        return mean_interval(np.subtract(a, b).tolist())
    difference = float(np.mean(a) - np.mean(b))
    errors = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    if sum(errors) == 0:
        return difference, difference
    freedom = sum(errors) ** 2 / sum(error**2 / (len(v) - 1) for error, v in zip(errors, (a, b), strict=True))
    spread = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(errors))
    return difference - spread, difference + spread
