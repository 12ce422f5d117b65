"""The workaround for torchvision with a CPU build of torch, and whether it is still needed."""

import subprocess
import sys

import pytest
import torch

from sleep_data.patches.torchvision import ensure_torchvision


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_repeated_calls():
    assert ensure_torchvision() in ("native", "patched")
    assert ensure_torchvision() == ensure_torchvision()


@pytest.mark.slow
def test_streaming_imports_after_the_call_in_a_fresh_process():
    result = run(
        "from sleep_data.patches.torchvision import ensure_torchvision as e; e(); from streaming import MDSWriter"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="torchvision fits a CUDA build of torch")
def test_the_workaround_is_still_needed():
    result = run("import streaming")
    assert "operator torchvision::nms does not exist" in result.stderr, "remove patches/torchvision.py and its calls"
