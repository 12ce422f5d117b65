"""Scaling laws: known constants are recovered within their intervals, and optima agree with a search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sleeptrain.study.scaling import ScalingLaw, fit_law

TRUE = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def test_the_fit_recovers_known_constants() -> None:
    noise = np.random.default_rng(1)
    runs = [(n, d) for n in (1e6, 1e7, 1e8, 1e9) for d in (2e7, 2e8, 2e9, 2e10) for _ in range(3)]
    losses = [(1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) * np.exp(0.005 * noise.standard_normal()) for n, d in runs]
    fit = fit_law([n for n, _ in runs], [d for _, d in runs], losses)
    for name in ("E", "A", "B", "alpha", "beta"):
        low, high = fit.interval(lambda law, name=name: getattr(law, name))
        assert low <= getattr(TRUE, name) <= high, name
        assert high - low < 0.3 * getattr(TRUE, name), f"{name}: the interval says nothing"
    low, high = fit.interval(lambda law: law.loss(7e9, 1.4e11))
    assert low <= 1.69 + 406.4 / 7e9**0.34 + 410.7 / 1.4e11**0.28 <= high and high - low < 0.1
    assert 0.003 < fit.error < 0.007


def test_the_optimum_is_that_of_a_search() -> None:
    params, tokens = TRUE.optimum(1e20, 6.0)
    sizes = np.geomspace(params / 100, params * 100, 200_001)
    found = sizes[np.argmin(1.69 + 406.4 / sizes**0.34 + 410.7 / (1e20 / 6 / sizes) ** 0.28)]
    assert params == pytest.approx(found, rel=1e-3) and 6 * params * tokens == pytest.approx(1e20)


GRID = [(n, d) for n in (1.0, 2.0, 4.0) for d in (1.0, 2.0, 4.0)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1.0, d) for d in (1.0, 2.0, 3.0)], "needs three sizes and three numbers of tokens, and there are 1 and 3"),
        ([(n, d) for n, d in GRID if n < 4] * 2, "there are 2 and 3"),
        # The seeds of one setting read slightly different numbers of tokens.
        ([(n, 1e9 * (1 + 0.001 * seed)) for n in (1.0, 2.0, 4.0) for seed in range(3)], "there are 3 and 1"),
        ([(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)] * 2, "3 pairs of size and tokens do not determine its 5 constants"),
        (GRID[:3] + GRID[4:9:4], "its 5 constants fit 5 runs exactly"),
    ],
)
def test_too_few_runs(pairs: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_law([n for n, _ in pairs], [d for _, d in pairs], [1.0] * len(pairs))


def test_an_optimum_beyond_all_numbers_is_finite() -> None:
    law = ScalingLaw(E=1.0, A=1.0, B=1e-20, alpha=0.01, beta=0.01)
    params, tokens = law.optimum(1e20, 6.0)
    assert 1e299 < params < math.inf and 0 < tokens < 1e-299
    assert math.isfinite(law.loss(params, tokens)) and law.loss(1.0, 1.0) == pytest.approx(2.0)
