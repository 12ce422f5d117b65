"""Programs in processes of their own that a test sends signals to, and what their run folders say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleep_data import shards
from sleep_data.tasks import make

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
"""One thread: the number of threads determines the order of sums, and so their rounding."""
WAIT = 180.0
"""Timeout in seconds; only a hang takes that long."""


def small_recipe(folder: Path) -> Path:
    """Make `data` and the recipe `small.yaml` in a folder, and return it."""
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}
    shards.build(make("rule110", sizes), folder / "data", {"train": 64, "test": 8}, 0)
    (folder / "small.yaml").write_text("optim: {schedule: {name: constant}}\n")
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl; none if there is no file yet."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def curve(run: Path) -> list[tuple[Any, ...]]:
    """What a run measured in every step, without what depends on the clock."""
    return [(r["step"], r["passes"], r["loss"], r["grad_norm"], r["state_norm"]) for r in rows(run)]


def start(folder: Path, command: list[str], environ: Mapping[str, str] = ENVIRONMENT) -> subprocess.Popen[str]:
    """Start a program in `folder` in a process group of its own, as a shell does."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(run: Path, step: int, program: subprocess.Popen[str]) -> None:
    """Wait until a run has logged `step`, or its program has exited."""
    deadline = time.monotonic() + WAIT
    while (rows(run) or [{"step": 0}])[-1]["step"] < step and program.poll() is None:
        assert time.monotonic() < deadline, f"{run} did not reach step {step} in {WAIT} s"
        time.sleep(0.02)


def stop_after(program: subprocess.Popen[str], run: Path, step: int, number: signal.Signals, delay: float = 0.0) -> str:
    """Send a signal to the program's process group `delay` seconds after the run has logged `step`, or when the program has exited.

    Returns its standard error when it has ended. A program that hangs, before or after the signal, is killed after WAIT seconds.
    """
    try:
        wait_for(run, step, program)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, number)
        return program.communicate(timeout=WAIT)[1]
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def children(process: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
