"""Processes that are tied to their parent end when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sleep_launch import parent

CHILD = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
print("ready", flush=True)
signal.pause()
"""


def test_a_child_is_told_that_its_parent_is_gone(tmp_path: Path) -> None:
    child = [sys.executable, "-c", CHILD]
    code = f"import os, subprocess; subprocess.Popen([{sys.executable!r}, {parent.__file__!r}, '15', str(os.getpid()), *{child!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as middle:
        assert middle.stdout is not None and middle.stdout.readline() == "ready\n"
        middle.kill()
        assert middle.stdout.read() == "asked to stop\n"  # ends when the child, which has the pipe, has ended


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    command = [sys.executable, parent.__file__, str(int(signal.SIGKILL)), str(os.getpid() + 1), "echo", "alive"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
