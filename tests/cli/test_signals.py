"""SIGINT and SIGTERM on real runs: exit status, a checkpoint of the last step, and the losses of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sleeptrain import checkpoint
from sleeptrain.errors import CONTINUE
from tests.cli.lines import TINY, run_lines
from tests.cli.programs import WAIT, children, curve, rows, small_recipe, start, stop_after, wait_for

FOREVER = 10**6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("signals"))


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
    assert program.returncode == CONTINUE, printed
    step = rows(run)[-1]["step"]
    assert saved(run) == step
    assert "stopping after this step" in printed and f"step {step} of {FOREVER}, stopped and saved" in printed
    assert "Traceback" not in printed and "error" not in printed, printed

    program = start(folder, [*sleeptrain, *words("stopped", FOREVER, "data.workers=1")])
    printed = stop_after(program, run, step + 3, signal.SIGTERM)
    assert program.returncode == CONTINUE, printed
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
        assert program.returncode == CONTINUE, printed
        assert "Traceback" not in printed, printed
        step = rows(run)[-1]["step"]
        assert saved(run) == step
    for done in run_lines([words(name, step + 3) for name in ("two", "two-whole")], folder, world=2):
        assert done.status == 0, done.err
    assert curve(run) == curve(folder / "two-whole")
    assert len(rows(run)) == step + 3


@pytest.mark.slow
def test_requests_during_a_save_of_two_processes_with_two_workers_each(folder: Path) -> None:
    """SIGTERM twice to every process of the job, launcher and workers included, while a save is written in the background."""
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--", sys.executable, "-m", "sleeptrain"]
    run, more = folder / "saving", ["data.workers=2", "checkpoint.every=1", "checkpoint.keep=2"]
    program = start(folder, [*launch, *words("saving", FOREVER, *more)])
    try:
        wait_for(run, 2, program)
        deadline = time.monotonic() + WAIT
        while not list((run / "checkpoints").glob(".*")) and program.poll() is None:
            assert time.monotonic() < deadline, "no save was seen"
        for _ in range(2):
            os.killpg(program.pid, signal.SIGTERM)
        printed = program.communicate(timeout=WAIT)[1]
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    assert program.returncode == CONTINUE and "Traceback" not in printed, printed
    step = rows(run)[-1]["step"]
    assert saved(run) == step
    for done in run_lines([words(name, step + 2) for name in ("saving", "saving-whole")], folder, world=2):
        assert done.status == 0, done.err
    assert curve(run) == curve(folder / "saving-whole")


def test_two_runs_in_one_folder(folder: Path) -> None:
    """The second is refused and changes nothing. A worker of a killed run does not live on, and the folder is free."""
    sleeptrain, run = [sys.executable, "-m", "sleeptrain"], folder / "shared"
    first = start(folder, [*sleeptrain, *words("shared", FOREVER, "data.workers=1", "checkpoint.every=1")])
    try:
        wait_for(run, 2, first)
        config = (run / "config.yaml").read_bytes()
        (second,) = run_lines([words("shared", FOREVER, "log.every=3")], folder)
        assert second.status == 2, second.err
        assert f"error: shared is in use by process {first.pid} on " in second.err
        assert (run / "config.yaml").read_bytes() == config
        first.kill()
        assert first.stderr is not None
        first.stderr.read()  # until the worker, which has the pipe, has ended
    finally:
        first.kill()
        first.wait()
    assert json.loads((run / "outcome.json").read_text())["state"] == "running"
    step = rows(run)[-1]["step"]
    (again,) = run_lines([words("shared", step + 2)], folder)
    assert again.status == 0, again.err
    assert json.loads((run / "outcome.json").read_text()) == {
        "state": "done", "step": step + 2, "by": None, "job": None,
    }  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGUSR1, "file"], ids=str)
def test_other_requests_stop_and_save(folder: Path, how: signal.Signals | str) -> None:
    """A closed terminal, a scheduler that announces the end, a file."""
    name = f"by-{how if isinstance(how, str) else how.name}"
    run, program = folder / name, start(folder, [sys.executable, "-m", "sleeptrain", *words(name, FOREVER)])
    if isinstance(how, str):
        wait_for(run, 2, program)
        (run / "stop").touch()
        printed = program.communicate(timeout=WAIT)[1]
    else:
        printed = stop_after(program, run, 2, how)
    assert program.returncode == CONTINUE, printed
    step = rows(run)[-1]["step"]
    assert saved(run) == step and not (run / "stop").exists()
    assert json.loads((run / "outcome.json").read_text()) == {
        "state": "stopped", "step": step, "by": "file" if how == "file" else "signal", "job": None,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_save_and_end_when_their_launcher_is_gone(folder: Path, number: signal.Signals) -> None:
    """SIGTERM reaches every rank twice: as one of the processes of the job, and by the launcher."""
    name = f"launcher-{number.name}"
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--"]
    launcher = start(folder, [*launch, sys.executable, "-m", "sleeptrain", *words(name, FOREVER)])
    try:
        wait_for(folder / name, 3, launcher)
        ranks = children(launcher.pid)
        assert len(ranks) == 2
        for process in (launcher.pid, *(ranks if number == signal.SIGTERM else [])):
            os.kill(process, number)
        assert launcher.stderr is not None
        printed = launcher.stderr.read()  # until rank 0, which has the pipe, has ended
        launcher.wait()
    finally:
        launcher.kill()
    assert launcher.returncode == (CONTINUE if number == signal.SIGTERM else -number), printed
    assert saved(folder / name) == rows(folder / name)[-1]["step"]
    assert "stopped and saved" in printed and "Traceback" not in printed


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_ends_so_that_it_continues(folder: Path) -> None:
    """SIGSTOP: it cannot report itself, and does not end by SIGTERM. Rank 0 warns, and then gives up."""
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--"]
    run = folder / "frozen"
    program = start(folder, [*launch, sys.executable, "-m", "sleeptrain", *words("frozen", FOREVER, "mesh.timeout=12", "checkpoint.every=1")])  # fmt: skip
    wait_for(run, 3, program)
    pid = json.loads((run / "heartbeats" / "rank-00001.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    printed = program.communicate(timeout=WAIT)[1]
    assert program.returncode == CONTINUE, printed
    warning, error = [line for line in printed.splitlines() if "rank 1 does not run (it was last " in line][:2]
    assert "warning: step " in warning and "Stacks are in frozen/heartbeats" in warning, printed
    assert "rank 0 of 2 cannot reach another process" in error and "Traceback" not in printed, printed
    assert not Path(f"/proc/{pid}").exists()
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    (again,) = run_lines([words("frozen", int(newest.name[5:]) + 2)], folder)
    assert again.status == 0 and f"continuing at step {int(newest.name[5:])} of " in again.err, again.err
