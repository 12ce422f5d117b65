"""How far trainings drift apart: distances of small examples by hand, and the numbers of docs/distributed.md."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import drift

ROOT = Path(__file__).parents[2]


ONE = drift.Trained([1.0, 2.0, 4.4], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
OTHER = drift.Trained([1.0, 2.5, 4.0], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([1.0])})


def test_distances_of_two_trainings():
    found = ONE.apart(OTHER)
    assert found["largest loss"] == pytest.approx(0.2) and found["mean loss"] == pytest.approx(0.1)
    assert found["weights"] == pytest.approx((9 / 10) ** 0.5)
    assert set(OTHER.apart(OTHER).values()) == {0}


def test_the_spread_of_several_pairs():
    found = drift.spread([(OTHER, OTHER), (ONE, OTHER), (OTHER, OTHER)])["largest loss"]
    assert found == {"least": 0, "median": 0, "greatest": pytest.approx(0.2)}


def test_the_page_says_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/drift.json").read_text())
    text = " ".join((ROOT / "docs/distributed.md").read_text().split())

    def percent(pair, which):
        return [f"{100 * found[f'{pair} from eager'][name][which]:.1f} %" for name in ("largest loss", "mean loss")]

    (largest, mean), (eager, eagers) = percent("compiled", "median"), percent("eager", "median")
    assert f"from {len(found['starts'])} starts" in text
    assert f"at most {largest} away from that of an eager one, and {mean} on the mean" in text
    assert f"two eager runs are at most {eager} and on the mean {eagers} apart" in text
    (largest, mean), (eager, eagers) = percent("compiled", "greatest"), percent("eager", "greatest")
    assert f"In the furthest pair it is {largest} and {mean}; of eager runs {eager} and {eagers}" in text
