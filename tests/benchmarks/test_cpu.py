"""The CPU benchmarks run, write what they measured, and judge targets; nothing here depends on speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Figure, interleaved, median_ratio, table
from sleep_data.tasks import TASKS

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = ("generators", "text_build")
"""Parts that only make data."""


def test_a_target_is_a_bound_on_one_side_or_absent():
    assert Figure("a", 2.0, "x", at_least=2.0).met is True and Figure("a", 1.9, "x", at_least=2.0).met is False
    assert Figure("a", 2.0, "x", at_most=2.0).met is True and Figure("a", 2.1, "x", at_most=2.0).met is False
    assert Figure("a", 2.0, "x").met is None


def test_rounds_make_all_runs_in_turn_and_ratios_are_paired():
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "ab"}
    times = interleaved(runs, 3)
    assert order == list("ababab") and times == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    # One slow round doubles both sides and leaves the ratio.
    assert median_ratio([2.0, 40.0, 2.2], [1.0, 20.0, 1.0]) == 2.0


def test_a_missed_target_stands_out():
    figures = [{"name": "n", "value": 3.0, "unit": "x", "at_least": 4.0, "at_most": None, "met": False}]
    assert table(figures).split() == ["n", "3.000", "x", ">=", "4", "MISSED"]


@pytest.mark.slow
def test_quick_forms_of_all_parts_run_and_write_the_results(tmp_path):
    out = tmp_path / "cpu.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), "--quick", "--json", str(out)]
    made = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stderr
    body = json.loads(out.read_text())
    assert body["command"].endswith(f"benchmarks/cpu.py --quick --json {out}")
    assert body["hardware"]["cpu"] and body["hardware"]["cores"] >= 1 and body["environment"]["versions"]["torch"]
    assert set(body["parts"]) == {
        "operators", "loss", "steps", "recompute", "startup", "threads", "checkpoint", "packing", "generators", "text_build",
    }  # fmt: skip
    for name, part in body["parts"].items():
        assert part["versions"]["python"] and part["figures"]
        assert name in WITHOUT_TORCH or part["versions"]["torch"]
        for figure in part["figures"]:
            assert figure["name"] in made.stdout and figure["unit"] and figure["met"] is None
    assert len(body["parts"]["packing"]["figures"]) == 1 and len(body["parts"]["text_build"]["figures"]) == 7
    generated = {f["name"].split(":")[0].split(",")[0] for f in body["parts"]["generators"]["figures"]}
    assert generated == set(TASKS) - {"text"}
    saved = {f["name"]: f["value"] for f in body["parts"]["recompute"]["figures"]}
    per_pass = [value for name, value in saved.items() if name.startswith("saved for one more pass, recompute pass")]
    assert per_pass and all(abs(value - 1) < 0.05 for value in per_pass)
