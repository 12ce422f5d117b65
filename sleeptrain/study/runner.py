"""Runs the commands of a study's points one after another, each with its output in a log, and stops with them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sleep_launch import parent
from sleeptrain.checkpoint.folder import latest, step_of
from sleeptrain.errors import CONTINUE, UserError
from sleeptrain.run.folder import CHECKPOINTS
from sleeptrain.run.stop import SignalHandler
from sleeptrain.study.points import Point
from sleeptrain.study.run_log import read_run

LOG = "study.log"
"""In the run folder: what the commands of a point printed."""
SHOWN = 5
"""Lines of a failed command's log that are shown."""


@dataclass(frozen=True)
class Failure:
    """A command of a point that did not end well."""

    folder: Path
    command: Sequence[str]
    status: int
    lines: Sequence[str]
    """The end of what it printed."""

    @property
    def again(self) -> bool:
        """Whether the same command can continue it."""
        return self.status == CONTINUE

    def __str__(self) -> str:
        how = "can be continued" if self.again else f"failed with exit status {self.status}"
        shown = "".join(f"\n    {line}" for line in self.lines)
        return f"{self.folder} {how}: {shlex.join(self.command)}{shown}"


class Stopping(SignalHandler):
    """Context manager that forwards signals to the command that runs. After the first one no further command is begun."""

    def __init__(self) -> None:
        self.asked = False
        self._process: subprocess.Popen[bytes] | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of a command, 128 + n where signal n ended it."""
        self._process = process
        if self.asked:  # the signal came while it was started
            process.terminate()
        code = process.wait()
        return 128 - code if code < 0 else code


def run_points(points: Sequence[Point], total: int, say: Callable[[str], None]) -> tuple[list[Failure], bool]:
    """Run what is left of every point; what fails does not keep the others from running.

    Returns the failures, and whether a signal asked to stop. `total` is the number of points of the study.
    """
    failures: list[Failure] = []
    with Stopping() as stopping:
        for point in points:
            left = point.left()
            place = f"{point.index + 1}/{total} {point.folder}"
            if not left:
                say(f"{place}: done before")
            for command in left:
                if stopping.asked:
                    return failures, True
                measures, step = "eval" in command[:2], _saved_step(point.folder)
                what = "measuring" if measures else f"continuing at step {step}" if step else "training"
                say(f"{place}: {what}, log in {point.folder / LOG}")
                began = time.monotonic()
                failure = _run(command, point.folder, stopping)
                if failure is not None:
                    failures += [] if failure.again and stopping.asked else [failure]
                    say(f"{place}: {'stopped and saved' if failure.again else f'failed ({failure.status})'}")
                    break
                whole = _all_steps(point.folder) if step and not measures else ""
                say(f"{place}: done in {time.monotonic() - began:.0f} s{whole}")
    return failures, stopping.asked


def _saved_step(folder: Path) -> int:
    """The step at which a run continues; 0 for a new one."""
    newest = latest(folder / CHECKPOINTS)
    return (step_of(newest) or 0) if newest else 0


def _all_steps(folder: Path) -> str:
    """What the steps of all starts of a run took together, for the line about its last start; empty where a row was lost."""
    try:
        log = read_run(folder, folder.name)
    except UserError:  # its metrics were removed meanwhile
        return " since then"
    seconds = log.seconds()
    return f" since then; all {len(log.rows):,} steps took {seconds[-1]:,.0f} s" if seconds else " since then"


def _run(command: Sequence[str], folder: Path, stopping: Stopping) -> Failure | None:
    """Run one command to its end, with its output at the end of the log in `folder`; None if it returned 0."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        # A session of its own: Ctrl-C reaches it once, forwarded. When this process is killed, it gets SIGTERM and saves.
        process = subprocess.Popen(
            [sys.executable, parent.__file__, str(int(signal.SIGTERM)), str(os.getpid()), *_program(command)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        status = stopping.wait(process)
    if status == 0:
        return None
    with open(folder / LOG, "rb") as log:
        log.seek(begin)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return Failure(folder, command, status, lines[-SHOWN:])


def _program(command: Sequence[str]) -> list[str]:
    """The command with this Python, whether or not it and `sleeptrain` are on PATH."""
    python = [sys.executable] if command[0] == "python" else [sys.executable, "-m", "sleeptrain"]
    rest = list(command[1:])
    if "--" in rest:
        place = rest.index("--")
        rest[place + 1 : place + 2] = [sys.executable, "-m", "sleeptrain"]
    return [*python, *rest]
