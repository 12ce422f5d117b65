"""Scaling laws: L(params, tokens) = E + A / params^alpha + B / tokens^beta, fitted to final losses of runs, with bootstrap intervals.

The fit is the third approach of Hoffmann et al. (Training Compute-Optimal Large Language Models, arXiv 2203.15556): the Huber loss
of the difference of log losses is minimised over log A, log B, log E, alpha and beta from many starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sleeptrain.evaluate.intervals import LEVEL, Interval

DELTA = 1e-3
"""Difference of log losses from which the Huber loss is linear."""
CONSTANTS = 5
SAME = 0.01
"""Relative difference up to which sizes or numbers of tokens count as one: seeds pack documents differently."""
RESAMPLES = 200
BOUNDS = [(-40.0, 40.0), (-40.0, 40.0), (-12.0, 6.0), (0.01, 3.0), (0.01, 3.0)]
"""Of log A, log B, log E, alpha and beta, with params and tokens relative to their geometric means."""
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ScalingLaw:
    """L(params, tokens) = E + A / params^alpha + B / tokens^beta, in nats per target."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        """The loss that it predicts."""
        by_size = _exp(math.log(self.A) - self.alpha * math.log(params))
        return self.E + by_size + _exp(math.log(self.B) - self.beta * math.log(tokens))

    def optimum(self, flops: float, cost: float) -> tuple[float, float]:
        """Params and tokens of the lowest loss for a budget of FLOPs, where training costs `cost` * params * tokens."""
        product, total = math.log(flops / cost), self.alpha + self.beta
        scale = math.log(self.alpha * self.A / (self.beta * self.B)) / total
        return _exp(scale + product * self.beta / total), _exp(product * self.alpha / total - scale)


def _exp(x: float) -> float:
    """exp(x), or 1e-300 or 1e300 beyond: where a resample hardly determines an exponent, its best size has no number."""
    return math.exp(min(max(x, -690.0), 690.0))


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law, and those of the resamples of the runs."""

    law: ScalingLaw
    resampled: Sequence[ScalingLaw]
    error: float
    """Root mean square of the differences of log losses, over the runs."""
    at_end: tuple[str, ...] = ()
    """Constants at the end of BOUNDS: the runs do not determine them."""

    def interval(self, of: Callable[[ScalingLaw], float]) -> Interval:
        """95 % bootstrap interval of a value of the law, by percentiles."""
        values = [of(law) for law in self.resampled]
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def obstacle(params: Sequence[float], tokens: Sequence[float]) -> str | None:
    """Why runs of these sizes do not determine the law and its intervals; None if they may."""
    n, d = distinct(params), distinct(tokens)
    sizes, counts, settings = len(set(n)), len(set(d)), len(set(zip(n, d, strict=True)))
    if min(sizes, counts) < 3:
        return f"an exponent needs three sizes and three numbers of tokens, and there are {sizes} and {counts}"
    if settings < CONSTANTS:
        return f"{settings} pairs of size and tokens do not determine its {CONSTANTS} constants"
    if len(n) == CONSTANTS:
        return f"its {CONSTANTS} constants fit {CONSTANTS} runs exactly, which leaves nothing to tell the error; add runs or seeds"
    return None


def distinct(values: Sequence[float]) -> list[int]:
    """By value, its place in ascending order, where values that differ by at most SAME share one."""
    order = np.argsort(values)
    ascending = np.asarray(values, float)[order]
    numbers = np.empty(len(order), int)
    numbers[order] = np.concatenate([[0], np.cumsum(ascending[1:] > ascending[:-1] * (1 + SAME))])
    return [int(number) for number in numbers]


def fit_law(params: Sequence[float], tokens: Sequence[float], losses: Sequence[float], seed: int = 0) -> ScalingFit:
    """Fit the law to runs. Resamples of the bootstrap draw whole runs; those that do not determine the law are drawn again.

    Raises ValueError where `obstacle` has something to say, or a loss is not above 0.
    """
    if reason := obstacle(params, tokens):
        raise ValueError(reason)
    n, d, y = (np.asarray(values, float) for values in (params, tokens, losses))
    if not np.all(y > 0):
        raise ValueError("losses must be above 0")
    scale = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
    log_n, log_d, log_y = np.log(n / scale[0]), np.log(d / scale[1]), np.log(y)
    low = float(np.log(y.min()))
    starts = [
        np.array([low + a, low + b, low + e, alpha, beta])
        for a, b, e, alpha, beta in itertools.product((-3, -1), (-3, -1), (-2, -0.3), (0.2, 0.6), (0.2, 0.6))
    ]
    best = min((_minimise(start, log_n, log_d, log_y) for start in starts), key=lambda found: found[1])[0]
    drawn, resampled = np.random.default_rng(seed), list[ScalingLaw]()
    while len(resampled) < RESAMPLES:
        rows = drawn.integers(len(y), size=len(y))
        if obstacle(n[rows].tolist(), d[rows].tolist()) is None:
            resampled.append(_law(_minimise(best, log_n[rows], log_d[rows], log_y[rows])[0], scale))
    error = float(np.sqrt(np.mean(np.square(_log_loss(best, log_n, log_d)[0] - log_y))))
    ends = zip(("A", "B", "E", "alpha", "beta"), best, BOUNDS, strict=True)
    at_end = tuple(name for name, x, bounds in ends if name != "E" and min(abs(x - end) for end in bounds) < 1e-6)
    return ScalingFit(_law(best, scale), resampled, error, at_end)


def _law(x: Vector, scale: tuple[float, float]) -> ScalingLaw:
    a, b, e, alpha, beta = (float(value) for value in x)
    return ScalingLaw(math.exp(e), math.exp(a) * scale[0] ** alpha, math.exp(b) * scale[1] ** beta, alpha, beta)


def _log_loss(x: Vector, log_n: Vector, log_d: Vector) -> tuple[Vector, Vector]:
    """Log of the predicted losses, and their derivatives by the five constants [5, runs]."""
    a, b, e, alpha, beta = x
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
    top = terms.max(0)
    weights = np.exp(terms - top)
    total = weights.sum(0)
    weights = weights / total
    return top + np.log(total), np.stack([*weights, -log_n * weights[0], -log_d * weights[1]])


def _minimise(start: Vector, log_n: Vector, log_d: Vector, log_y: Vector) -> tuple[Vector, float]:
    """The constants of the lowest sum of Huber losses that is reached from `start`, and that sum."""
    from scipy.optimize import minimize

    def objective(x: Vector) -> tuple[float, Vector]:
        predicted, slopes = _log_loss(x, log_n, log_d)
        # In units of DELTA the optimiser's tolerances fit.
        r = (predicted - log_y) / DELTA
        far = np.abs(r) > 1
        loss = np.where(far, np.abs(r) - 0.5, 0.5 * r * r).sum()
        return float(loss), (slopes * (np.clip(r, -1, 1) / DELTA)).sum(1)

    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 500})
    return found.x, float(found.fun)
