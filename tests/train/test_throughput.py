"""Figures of a run on its device."""

import subprocess
import sys

import pytest
import torch

from sleeptrain.train.throughput import peak_memory

PRINT = "from sleeptrain.train.throughput import peak_memory; print(peak_memory())"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, whose memory is measured")
def test_the_peak_of_a_process_is_not_that_of_the_process_that_started_it():
    """A launcher, a study or a notebook that holds much does not count as memory of its runs."""
    held = bytearray(1 << 30)
    held[::4096] = bytes(len(held[::4096]))
    assert peak_memory() > 1 << 30
    ran = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True)
    assert 1 << 26 < int(ran.stdout) < 1 << 30
