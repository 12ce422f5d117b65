"""Confidence intervals: of a share over distinct problems, of a mean over seeds, and of the difference of two means."""

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
    effective = problems if variance == 0 else min(p * (1 - p) / variance, total)
    z = float(t.ppf((1 + LEVEL) / 2, problems - 1))
    middle, spread = p + z * z / (2 * effective), z * math.sqrt(p * (1 - p) / effective + (z / (2 * effective)) ** 2)
    low, high = (middle - spread) / (1 + z * z / effective), (middle + spread) / (1 + z * z / effective)
    return min(low, p), max(high, p)  # at shares of 0 and 1 a bound equals the share, except for rounding


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
    from scipy.stats import ttest_ind

    if min(len(a), len(b)) < 2:
        return None
    if paired:
        return mean_interval(np.subtract(a, b).tolist())
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        difference = float(np.mean(a) - np.mean(b))
        return difference, difference
    interval = ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return float(interval.low), float(interval.high)
