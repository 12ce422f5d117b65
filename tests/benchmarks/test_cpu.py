"""The CPU benchmarks run, write what they measured, and judge targets; nothing here depends on speed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Figure, interleaved, median_ratio, table
from sleep_data.tasks import TASKS

ROOT = Path(__file__).parents[2]
SOURCE = ast.parse((ROOT / "benchmarks" / "cpu.py").read_text())
[PARTS] = [
    ast.literal_eval(line.value)
    for line in SOURCE.body
    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "PARTS"
]
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


SAMPLE = ("recompute", "generators")
"""Parts that CI runs; `make drills` runs the rest."""
FIGURES = {"packing": 1, "text_build": 8}
"""The number of figures of some parts."""


@pytest.mark.parametrize(
    "part", [pytest.param(name, marks=pytest.mark.slow if name in SAMPLE else pytest.mark.exhaustive) for name in PARTS]
)
def test_the_quick_form_of_a_part_runs_and_writes_its_results(tmp_path, part):
    out = tmp_path / "cpu.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), "--quick", "--only", part, "--json", str(out)]
    made = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stderr
    body = json.loads(out.read_text())
    assert body["command"].endswith(f"benchmarks/cpu.py --quick --only {part} --json {out}")
    assert body["hardware"]["cpu"] and body["hardware"]["cores"] >= 1 and body["environment"]["versions"]["torch"]
    assert list(body["parts"]) == [part]
    found = body["parts"][part]
    assert found["versions"]["python"] and found["figures"]
    assert part in WITHOUT_TORCH or found["versions"]["torch"]
    for figure in found["figures"]:
        assert figure["name"] in made.stdout and figure["unit"] and figure["met"] is None
    assert len(found["figures"]) == FIGURES.get(part, len(found["figures"]))
    values = {figure["name"]: figure["value"] for figure in found["figures"]}
    if part == "generators":
        assert {name.split(":")[0].split(",")[0] for name in values} == set(TASKS) - {"text"}
    if part == "recompute":
        per_pass = [
            value for name, value in values.items() if name.startswith("saved for one more pass, recompute pass")
        ]
        assert per_pass and all(abs(value - 1) < 0.05 for value in per_pass)
