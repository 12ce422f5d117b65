"""Signals that SLURM sends to all processes of a step do not reach Python's resource tracker."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal
from multiprocessing import resource_tracker
from sleeptrain.data.worker_signals import REQUESTS, start_resource_tracker
start_resource_tracker()
tracker = resource_tracker._resource_tracker._pid
[line] = [line for line in open(f"/proc/{tracker}/status") if line.startswith("SigBlk")]
assert all(int(line.split()[1], 16) >> (number - 1) & 1 for number in REQUESTS), line
assert not {*signal.pthread_sigmask(signal.SIG_BLOCK, ())} & {*REQUESTS}
for number in REQUESTS:
    os.kill(tracker, number)
start_resource_tracker()
assert resource_tracker._resource_tracker._pid == tracker
"""


def test_the_tracker_outlives_requests_to_stop() -> None:
    """The training process itself gets them as before."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
