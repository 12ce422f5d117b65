"""Planned against measured times of steps: the measured ones are committed, so that a change of the planner is held against them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_plans_order_the_measured_layouts(tmp_path):
    """The status says whether the order of all far pairs is right; a step of one or two processes is within a fifth."""
    script, out = ROOT / "benchmarks" / "plan_time.py", tmp_path / "found.json"
    ran = subprocess.run([sys.executable, str(script), "--json", str(out)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(out.read_text())["with latency"]
    assert found["right_of_equal_processes"] == found["pairs_of_equal_processes"] > 200
    few = [
        case
        for name, case in found["cases"].items()
        if name.startswith(("one process,", "data=2,", "tensor=2,", "pipe=2,"))
    ]
    assert len(few) == 16 and all(0.8 < case["measured"] / case["predicted"] < 1.25 for case in few)
