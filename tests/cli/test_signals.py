"""SIGINT and SIGTERM on real runs: exit status, a checkpoint of the last step, and the losses of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from tests.cli.lines import TINY, run_lines

FOREVER = 10**6
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
"""One thread: the number of threads determines the order of sums, and so their rounding."""
WAIT = 180.0
"""Timeout in seconds; only a hang takes that long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("signals")
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}
    shards.build(make("rule110", sizes), made / "data", {"train": 64, "test": 8}, 0)
    (made / "small.yaml").write_text("optim: {schedule: {name: constant}}\n")
    return made


def words(run: str, steps: int, *more: str) -> list[str]:
    data = [
        "data.sources=[{path: data}]",
        "sleep.window=9",
        "sleep.passes={low: 1, high: 3}",
        "train.batch=8",
        "checkpoint.every=0",
    ]
    return ["train", "small.yaml", *data, *TINY, f"train.steps={steps}", f"run_dir={run}", *more]


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """A program in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop_after(program: subprocess.Popen[str], run: Path, steps: int, number: signal.Signals) -> str:
    """Send a signal to the whole group once the run stands at `steps` at least; what it said."""
    deadline = time.monotonic() + WAIT
    try:
        while (rows(run) or [{"step": 0}])[-1]["step"] < steps:
            assert program.poll() is None, program.communicate()[1]
            assert time.monotonic() < deadline, f"{run} did not come to step {steps} in {WAIT} s"
            time.sleep(0.05)
        os.killpg(program.pid, number)
        return program.communicate(timeout=WAIT)[1]
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)


def curve(run: Path) -> list[tuple[Any, ...]]:
    return [(r["step"], r["passes"], r["loss"], r["grad_norm"], r["state_norm"]) for r in rows(run)]


def saved(run: Path) -> int:
    """The step of the newest checkpoint, which is whole."""
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    assert (newest / "model.safetensors").exists() and not list((run / "checkpoints").glob(".*.part"))
    return int(newest.name.partition("-")[2])


def test_stopped_twice_and_continued_it_learns_what_an_undisturbed_run_does(folder: Path) -> None:
    run = folder / "stopped"
    sleeptrain = [sys.executable, "-m", "sleeptrain"]
    # A worker that reads ahead hears the signal too, and must not take the run down with it.
    program = started(folder, [*sleeptrain, *words("stopped", FOREVER, "data.workers=1")])
    told = stop_after(program, run, 3, signal.SIGINT)
    assert program.returncode == 128 + signal.SIGINT, told
    step = rows(run)[-1]["step"]
    assert saved(run) == step
    assert "stopping after this step" in told and f"step {step} of {FOREVER}, stopped and saved" in told
    assert "Traceback" not in told and "error" not in told, told

    program = started(folder, [*sleeptrain, *words("stopped", FOREVER, "data.workers=1")])
    told = stop_after(program, run, step + 3, signal.SIGTERM)
    assert program.returncode == 128 + signal.SIGTERM, told
    assert f"continuing at step {step} of {FOREVER}" in told
    step = rows(run)[-1]["step"]
    assert saved(run) == step

    ended, whole = run_lines([words("stopped", step + 3), words("whole", step + 3)], folder)
    assert (ended.status, whole.status) == (0, 0), ended.err + whole.err
    assert curve(run) == curve(folder / "whole")
    assert [r["step"] for r in rows(run)] == list(range(1, step + 4))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_stop_at_the_same_step(folder: Path, number: signal.Signals) -> None:
    name = f"two-{number.name}"
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--"]
    sleeptrain = [*launch, sys.executable, "-m", "sleeptrain"]
    program = started(folder, [*sleeptrain, *words(name, FOREVER)])
    told = stop_after(program, folder / name, 3, number)
    assert program.returncode == 128 + number, told
    assert "Traceback" not in told, told
    step = rows(folder / name)[-1]["step"]
    assert saved(folder / name) == step
    for run in (name, f"{name}-whole"):
        done = subprocess.run([*sleeptrain, *words(run, step + 3)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert curve(folder / name) == curve(folder / f"{name}-whole")
    assert len(rows(folder / name)) == step + 3


def test_the_same_signal_twice_ends_at_once() -> None:
    code = """
import os, signal
from sleeptrain.run.stop import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.signal, stop.agreed("cpu"), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{int(signal.SIGINT)} True\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")
