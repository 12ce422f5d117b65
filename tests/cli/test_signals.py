"""SIGINT and SIGTERM on real runs: exit status, a checkpoint of the last step, and the losses of an uninterrupted run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from sleeptrain import checkpoint
from tests.cli.lines import TINY, run_lines
from tests.cli.programs import ENVIRONMENT, WAIT, curve, rows, start, stop_after

FOREVER = 10**6


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


def saved(run: Path) -> int:
    """The step of the newest checkpoint, after a check that it is complete."""
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and checkpoint.load_weights(newest) and not list((run / "checkpoints").glob(".*"))
    return int(newest.name.partition("-")[2])


def test_a_run_stopped_twice_has_the_losses_of_an_uninterrupted_run(folder: Path) -> None:
    run = folder / "stopped"
    sleeptrain = [sys.executable, "-m", "sleeptrain"]
    # A data worker receives the signal too and must not end the run.
    program = start(folder, [*sleeptrain, *words("stopped", FOREVER, "data.workers=1")])
    printed = stop_after(program, run, 3, signal.SIGINT)
    assert program.returncode == 128 + signal.SIGINT, printed
    step = rows(run)[-1]["step"]
    assert saved(run) == step
    assert "stopping after this step" in printed and f"step {step} of {FOREVER}, stopped and saved" in printed
    assert "Traceback" not in printed and "error" not in printed, printed

    program = start(folder, [*sleeptrain, *words("stopped", FOREVER, "data.workers=1")])
    printed = stop_after(program, run, step + 3, signal.SIGTERM)
    assert program.returncode == 128 + signal.SIGTERM, printed
    assert f"continuing at step {step} of {FOREVER}" in printed
    step = rows(run)[-1]["step"]
    assert saved(run) == step

    ended, whole = run_lines([words("stopped", step + 3), words("whole", step + 3)], folder)
    assert (ended.status, whole.status) == (0, 0), ended.err + whole.err
    assert curve(run) == curve(folder / "whole")
    assert [r["step"] for r in rows(run)] == list(range(1, step + 4))


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(folder: Path) -> None:
    """Stopped by SIGINT, continued, stopped by SIGTERM, continued."""
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--"]
    sleeptrain = [*launch, sys.executable, "-m", "sleeptrain"]
    run, step = folder / "two", 0
    for number in (signal.SIGINT, signal.SIGTERM):
        program = start(folder, [*sleeptrain, *words("two", FOREVER)])
        printed = stop_after(program, run, step + 3, number)
        assert program.returncode == 128 + number, printed
        assert "Traceback" not in printed, printed
        step = rows(run)[-1]["step"]
        assert saved(run) == step
    for name in ("two", "two-whole"):
        done = subprocess.run([*sleeptrain, *words(name, step + 3)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert curve(run) == curve(folder / "two-whole")
    assert len(rows(run)) == step + 3


def test_a_second_sigterm_ends_the_process_at_once() -> None:
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
