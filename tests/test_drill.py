"""The seeds of drills, and what a failed drill prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drill import seeds

ROOT = Path(__file__).parents[1]
DRILL = """
import pytest

@pytest.mark.drill
def test_fault(drill_seed):
    assert drill_seed != 7
"""


def run_drill(tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_one.py").write_text(DRILL)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = drill\n")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.drill", "-p", "no:cacheprovider", *words, str(tmp_path)]  # fmt: skip
    variables = {name: value for name, value in os.environ.items() if name != "DRILL_SEEDS"}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)


def test_seeds() -> None:
    assert seeds("3,5") == [3, 5] and seeds("11") == [11]
    with pytest.raises(pytest.UsageError, match="'a': the seeds of drills are whole numbers"):
        seeds("a")


def test_seeds_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRILL_SEEDS", raising=False)
    assert seeds(None) == [0]
    monkeypatch.setenv("DRILL_SEEDS", "1,2")
    assert seeds(None) == [1, 2] and seeds("9") == [9]


def test_without_options_seed_0_runs(tmp_path: Path) -> None:
    done = run_drill(tmp_path)
    assert done.returncode == 0 and "test_fault[seed=0] PASSED" in done.stdout and "1 passed" in done.stdout


def test_a_failed_drill_prints_how_to_repeat_it(tmp_path: Path) -> None:
    for done in (run_drill(tmp_path, "--drill-seeds", "6,7"), run_drill(tmp_path, DRILL_SEEDS="6,7")):
        assert done.returncode == 1
        assert "test_fault[seed=6] PASSED" in done.stdout and "test_fault[seed=7] FAILED" in done.stdout
        assert done.stdout.count("make drills DRILL_SEEDS=7 DRILL=test_fault") == 1
