"""The benchmarks of deep stacks run, write what they measured, and put it into tables and pictures."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """The scripts import what is beside them, as when they are run. Elsewhere their names would hide packages'."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def depth():
    return importlib.import_module("depth")


@pytest.fixture
def depth_training():
    return importlib.import_module("depth_training")


def rows(depth, norm):
    """Rows as a full run returns them, with `norm(remedy, point)` as norms."""
    return [
        {"remedy": name, **vars(point), "norm": norm(name, point), "growth": 1.0}
        for name in depth.REMEDIES
        for point in depth.points(name, quick=False)
    ]


def test_every_value_of_every_axis_is_in_the_table(depth):
    lines = depth.table(rows(depth, lambda name, point: 2.0 ** math.log2(point.blocks))).splitlines()
    assert len(lines) == 2 + len(depth.REMEDIES)
    for line in lines[2:]:
        assert line.split(" | ")[1:5] == ["4", "12", "24", "48"] and line.count("24") >= 7


def test_the_worst_ratio_is_that_of_the_deep_recipes_over_all_passes_and_windows(depth):
    def norm(name, point):
        return (
            point.windows * (7.0 if (point.passes, point.windows) == (8, 4) else 1.0) if name == depth.DEFAULT else 1e9
        )

    assert depth.worst_ratio(rows(depth, norm)) == pytest.approx(7.0)
    points = {(p.passes, p.windows) for p in depth.points(depth.DEFAULT, quick=False) if p.blocks == 24}
    assert points == {(n, w) for n in (1, 2, 4, 8) for w in (2, 4, 8, 16)}


def test_both_pictures_are_drawn(depth, depth_training, tmp_path):
    depth.plot(rows(depth, lambda name, point: float(point.windows)), tmp_path / "depth.svg")
    depth_training.plot(trainings(depth_training), [24, 12], tmp_path / "training.svg")
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in ("depth.svg", "training.svg"))


def trainings(depth_training):
    """Runs that all end at 2 + N / 10, plus a tenth for every seed, and .5 more where branches are not scaled."""
    runs = [
        depth_training.Run(seed, blocks, *case) for seed in (0, 1, 2) for blocks in (24, 12) for case in depth_training.CASES
    ]  # fmt: skip
    return {
        run: {
            "eval": {"runs": [{"measured": [{"loss": 2 + run.passes / 10 + run.seed / 10 + (not run.scaled) / 2}]}]},
            "loss": [5.0 - step / 10 for step in range(30)], "grad_norm": [3.0, 1.0], "state_gradient_growth": [4.0, 2.0],
        }
        for run in runs
    }  # fmt: skip


def test_differences_are_paired_by_seed(depth_training):
    lines = list(depth_training.report(trainings(depth_training), [0, 1, 2], [24]))[2:]
    half = 4.303 * statistics.stdev([0.0, 0.1, 0.2]) / 3**0.5
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["scaled, N = 1", f"2.200 ± {half:.3f}", ""],
        ["scaled, N = 2", f"2.300 ± {half:.3f}", "+0.100 ± 0.000"],
        ["scaled, gated, N = 2", f"2.300 ± {half:.3f}", "+0.100 ± 0.000"],
        ["unscaled, N = 1", f"2.700 ± {half:.3f}", "+0.500 ± 0.000"],
        ["unscaled, N = 2", f"2.800 ± {half:.3f}", "+0.600 ± 0.000"],
    ]


@pytest.mark.slow
def test_the_quick_form_measures_every_remedy(depth, tmp_path):
    out = tmp_path / "depth.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "depth.py"), "--quick", "--json", str(out)]
    made = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stderr
    found = {(row["remedy"], row["blocks"], row["passes"]): row["norm"] for row in json.loads(out.read_text())["rows"]}
    assert {remedy for remedy, _, _ in found} == set(depth.REMEDIES)
    assert found[depth.SCALED, 8, 2] < found["raw", 8, 2] and found["gradient.windows 1", 4, 2] < found["raw", 4, 2]
    assert all(norm > 0 for norm in found.values())


def test_points_vary_one_parameter_at_a_time(depth):
    base = depth.Point()
    for point in depth.points("raw", quick=False):
        changed = [name for name, value in vars(point).items() if value != getattr(base, name)]
        assert len(changed) <= 1 and replace(point, **{name: getattr(base, name) for name in changed}) == base
