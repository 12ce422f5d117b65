"""The benchmark of inference runs and prints every figure; the bytes of the state do not depend on the machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_form_measures_every_figure(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/inference.py", "--quick", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert len(figures) == 14 and all(figure["value"] > 0 for figure in figures.values())
    assert figures["bytes of hybrid-1b's state by a cache of 32k tokens"]["value"] <= 0.15
