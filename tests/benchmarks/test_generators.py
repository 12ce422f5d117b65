"""The benchmark of generators runs and names every task and split."""

import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data.tasks import TASKS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_form_runs():
    words = [sys.executable, str(ROOT / "benchmarks" / "generators.py"), "--quick"]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    names = {line.split(":")[0].split(",")[0] for line in made.stdout.splitlines()}
    assert names == set(TASKS) - {"text"}
