"""The work-around for torchvision beside a CPU build of torch, and whether it is still needed."""

import subprocess
import sys

import pytest
import torch

from sleep_data.patches.torchvision import ensure_torchvision


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_calls_may_be_repeated():
    assert ensure_torchvision() in ("native", "patched")
    assert ensure_torchvision() == ensure_torchvision()


@pytest.mark.slow
def test_streaming_imports_after_the_call_in_a_fresh_process():
    done = run(
        "from sleep_data.patches.torchvision import ensure_torchvision as e; e(); from streaming import MDSWriter"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build, to which torchvision's fits")
def test_it_is_still_needed():
    done = run("import streaming")
    assert "operator torchvision::nms does not exist" in done.stderr, "remove patches/torchvision.py and its calls"
