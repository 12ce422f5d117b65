"""How far trainings drift apart: distances of small examples by hand, and the numbers of docs/distributed.md."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import drift

ROOT = Path(__file__).parents[2]
RESULTS, FIRST_STEPS = (
    json.loads((ROOT / "benchmarks/results" / name).read_text()) for name in ("drift.json", "drift_first_steps.json")
)

ONE = drift.Trained([1.0, 2.0, 5.0], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
OTHER = drift.Trained([1.0, 3.0, 5.0], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([1.0])})


def test_distances_of_two_trainings():
    assert ONE.apart(OTHER) == OTHER.apart(ONE) == pytest.approx([0.4, 0.4 / 3, (9 / 17.5) ** 0.5])
    assert OTHER.apart(OTHER) == [0, 0, 0]


def test_all_pairs_of_trainings():
    found = drift.compare([ONE, ONE, OTHER], [OTHER, ONE])
    assert found["pairs"][0] == [0, 1, 0, 0, 0] and found["pairs"][1][:3] == [0, 2, 0.4] and len(found["pairs"]) == 10
    apart = found["largest loss"]
    assert apart["eager from eager"] == {"least": 0, "median": pytest.approx(0.4), "greatest": pytest.approx(0.4)}
    assert apart["further"] == pytest.approx((0.4 + 0.4 + 0.4) / 6 - (0.4 + 0.4) / 3)


def test_the_probability_is_that_of_all_choices():
    points = np.random.default_rng(1).normal(size=9)
    apart, compiled = abs(points[:, None] - points), np.arange(9) >= 5
    choices = itertools.combinations(range(9), 4)

    def further(chosen):
        rest = [run for run in range(9) if run not in chosen]
        between = [apart[one, other] for one, other in itertools.product(chosen, rest)]
        within = [apart[one, other] for one, other in itertools.combinations(rest, 2)]
        return sum(between) / len(between) - sum(within) / len(within)

    found = [further(chosen) >= further((5, 6, 7, 8)) - 1e-12 for chosen in choices]
    assert drift.probability(apart, compiled) == pytest.approx(sum(found) / len(found), abs=0.02)


def test_compiled_runs_further_away_are_found():
    points, compiled = np.array([*range(8), *range(100, 108)]), np.arange(16) >= 8
    assert drift.probability(abs(points[:, None] - points), compiled) < 0.001


@pytest.mark.parametrize("name", drift.DISTANCES)
def test_the_results_follow_from_the_pairs(name):
    runs, column = 2 * len(RESULTS["starts"]), 2 + drift.DISTANCES.index(name)
    apart, compiled = np.zeros((runs, runs)), np.arange(runs) >= runs // 2
    for pair in RESULTS["pairs"]:
        apart[pair[0], pair[1]] = apart[pair[1], pair[0]] = pair[column]
    assert len(RESULTS["pairs"]) == runs * (runs - 1) // 2
    between = apart[compiled][:, ~compiled]
    assert RESULTS[name]["compiled from eager"]["median"] == pytest.approx(np.median(between), rel=1e-3)
    assert RESULTS[name]["probability"] == pytest.approx(drift.probability(apart, compiled), abs=1e-3)


def test_the_page_says_what_was_measured():
    text = " ".join((ROOT / "docs/distributed.md").read_text().split())

    def percent(pair, which):
        return [f"{100 * RESULTS[name][f'{pair} from eager'][which]:.1f} %" for name in ("largest loss", "mean loss")]

    (largest, mean), (eager, eagers) = percent("compiled", "median"), percent("eager", "median")
    assert f"from {len(RESULTS['starts'])} starts" in text
    assert f"at most {largest} away from that of an eager one, and {mean} on the mean" in text
    assert f"two eager runs are at most {eager} and on the mean {eagers} apart" in text
    (largest, mean), (eager, eagers) = percent("compiled", "greatest"), percent("eager", "greatest")
    assert f"In the furthest pair it is {largest} and {mean}; of eager runs {eager} and {eagers}" in text
    largest, mean = (f"{RESULTS[name]['probability']:.2f}" for name in ("largest loss", "mean loss"))
    assert f"at least as far in {largest} (largest) and {mean} (mean) of all choices" in text
    assert "After three steps" in text and FIRST_STEPS["command"].endswith("--steps 3")
    assert all(FIRST_STEPS[name]["probability"] < 0.01 for name in drift.DISTANCES)
