"""How far trainings drift apart: distances of small examples by hand, and the numbers of docs/distributed.md."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import drift

ROOT = Path(__file__).parents[2]


def test_distances_of_two_trainings():
    one = drift.Trained([1.0, 2.0, 4.4], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
    other = drift.Trained([1.0, 2.5, 4.0], {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([1.0])})
    found = one.apart(other)
    assert found["largest loss"] == pytest.approx(0.2) and found["mean loss"] == pytest.approx(0.1)
    assert found["weights"] == pytest.approx((9 / 10) ** 0.5) and found["first step with another loss"] == 2
    assert set(other.apart(other).values()) == {0}


def test_the_page_says_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/drift.json").read_text())["apart from eager"]
    compiled, moved = found.pop("compiled"), found.values()
    text = " ".join((ROOT / "docs/distributed.md").read_text().split())

    def percent(name):
        return f"{100 * compiled[name]:.1f} %", sorted(f"{100 * each[name]:.1f}" for each in moved)

    (largest, apart), (mean, means) = percent("largest loss"), percent("mean loss")
    assert f"at most {largest} away from that of the eager run, and {mean} on the mean" in text
    assert f"at most {apart[0]} to {apart[-1]} % away, and {means[0]} to {means[-1]} % on the mean" in text
