"""The budget of a step: its parts by hand, and the tables of docs/performance.md."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from sleeptrain.engine.orthogonalise import orthogonalise

ROOT = Path(__file__).parents[2]
FOUND = {
    each["recompute"]: each for each in json.loads((ROOT / "benchmarks/results/budget.json").read_text())["budgets"]
}
USES = 2 * 15
"""Passes over a window: two rows, 8 windows, of which all but the last have two."""
BLOCKS = {"q, k, v, z, o": 18 * 5 * 2048 * 2048, "a, b": 18 * 2 * 16 * 2048, "MLP": 24 * 3 * 2048 * 5632}
BLOCKS |= {"q, gate, o": 6 * 3 * 2048 * 2048, "k, v": 6 * 2 * 512 * 2048}
"""Weights of products in 18 Gated DeltaNet and 6 attention blocks."""


@pytest.fixture(scope="module")
def budget():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")  # which the import sets, and which other tests must not see
        from benchmarks import budget
    return budget


def test_flops_of_products_by_hand():
    """Of four products of a weight, one each forward and recomputed and two in backward, that of `down` is not recomputed: nobody reads it."""
    once = 2 * 2048 * USES / 1e12
    of_weights, down = sum(BLOCKS.values()) * once, 24 * 2048 * 5632 * once
    assert FOUND["block"]["rows"]["products"]["TFLOPs"] == pytest.approx(4 * of_weights - down, rel=1e-4)
    assert FOUND["selective"]["rows"]["products"]["TFLOPs"] == pytest.approx(3 * of_weights, rel=1e-4)
    assert FOUND["block"]["rows"]["head"]["TFLOPs"] == pytest.approx(4 * 2 * 2048 * 2048 * 32768 * 16 / 1e12, rel=1e-3)


def test_bytes_of_sums_by_hand():
    """Ten for each weight and use; norms, gates and convolutions are less than a thousandth."""
    expected = 10 * sum(BLOCKS.values()) * USES / 1e9
    assert expected < FOUND["block"]["rows"]["sums"]["GB"] < 1.001 * expected + 0.1


def test_work_of_a_batch_of_muon(budget):
    """Three products a step of the iteration, and two diagonals; in bf16 they read and write two bytes an element."""
    n, rows, columns, steps = 7, 64, 256, 5
    batch = torch.empty(n, rows, columns, dtype=torch.bfloat16)
    once, twice = (budget.counted(partial(orthogonalise, batch, count)) for count in (1, 2))
    products = n * (2 * rows * rows * columns + 2 * rows**3 + 2 * rows * rows * columns)
    assert once.flops == products and twice.launches - once.launches == 5
    assert budget.counted(partial(orthogonalise, batch, steps)).flops == steps * products
    small, large, diagonals = 2 * n * rows * rows, 2 * n * rows * columns, 2 * 2 * (2 * n * rows)
    assert twice.bytes - once.bytes == (2 * large + small) + 3 * small + (small + 2 * large) + diagonals


def test_the_floor_is_the_larger_of_two_times(budget):
    assert budget.Work.of_launch(790e12, 1.0).seconds == pytest.approx(1)
    two = budget.Work.of_launch(1.0, 2.7e12) * 2 + budget.Work.of_launch(0, 0)
    assert two.seconds == pytest.approx(2) and two.launches == 3


def test_sums_and_the_page():
    text = (ROOT / "docs/performance.md").read_text()
    for body in FOUND.values():
        floors = sum(row["floor, ms"] for row in body["rows"].values())
        assert floors == pytest.approx(1e3 * body["step"]["floor, s"], abs=1)
        assert sum(row["launches"] for row in body["rows"].values()) == pytest.approx(body["step"]["launches"], abs=9)
    for name, row in FOUND["block"]["rows"].items():
        assert f"| {row['floor, ms']} | {FOUND['selective']['rows'][name]['floor, ms']} |" in text, name
    assert f"{FOUND['block']['step']['launches']:,} launches a step" in text
