"""The benchmarks of the data run in their quick form and name what they measure; nothing here depends on speed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figures"), [("text_build", 7), ("packing", 1)])
def test_quick_form(tmp_path, name, figures):
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    made = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == figures
