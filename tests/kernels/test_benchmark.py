"""The GPU benchmark where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks/kernels.py"
    command = [sys.executable, str(script), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no GPU run\nok: chunked") and (tmp_path / "out.json").exists()
