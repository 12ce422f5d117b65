"""Drill: trainings are killed at random moments and continued; their losses are those of an uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from sleeptrain import checkpoint
from tests.cli.lines import TINY, run_lines
from tests.cli.programs import WAIT, children, curve, rows, start, stop_after, wait_for

STEPS = 24
SAVED_AND_STOPPED = 75
SIZES = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}


def command_line(run: str, every: int, steps: int = STEPS) -> list[str]:
    """`sleeptrain train` of rule110-tiny at toy size with a checkpoint in every `every`-th step."""
    sizes = [*TINY, "sleep.passes={low: 1, high: 3}", "train.batch=8"]
    return ["train", "rule110-tiny", *sizes, f"train.steps={steps}", f"checkpoint.every={every}", f"run_dir={run}"]


def check_checkpoints(run: Path) -> int:
    """Load everything that passes for a checkpoint, as it would be read. Returns the step that a run would continue from, 0 if none."""
    folder = run / "checkpoints"
    newest = checkpoint.latest(folder)
    saved = sorted(folder.glob("step-*"))
    for path in saved:
        assert all(weight.isfinite().all() for weight in checkpoint.load_weights(path).values())
    if newest is None:
        assert not saved
        return 0
    assert newest in saved
    return int(newest.name.removeprefix("step-"))


@pytest.mark.slow
@pytest.mark.drill
def test_a_killed_training_continues_with_the_same_losses(drill_seed: int, tmp_path: Path) -> None:
    """SIGKILL and SIGTERM in random order, each a random time after a random step: in a step, in a save, between both."""
    draw = random.Random(drill_seed)
    shards.build(make("rule110", SIZES), tmp_path / "runs" / "data" / "rule110-tiny", {"train": 64, "test": 8}, 0)
    run, every = tmp_path / "killed", draw.choice((1, 2, 5))
    line = command_line("killed", every)
    logged = done = 0
    for number in draw.sample((signal.SIGKILL, signal.SIGTERM), 2):
        program = start(tmp_path, [sys.executable, "-m", "sleeptrain", *line])
        printed = stop_after(program, run, logged + draw.randint(1, STEPS // 3), number, delay=draw.uniform(0, 0.3))
        expected = {-signal.SIGKILL} if number == signal.SIGKILL else {SAVED_AND_STOPPED}
        assert program.returncode in {0, *expected}, printed  # 0: it had just finished
        assert "Traceback" not in printed, printed
        logged, done = rows(run)[-1]["step"], check_checkpoints(run)
        # One save may be going on in the background, and the next one waits for it.
        assert 0 <= logged - done <= 2 * every, "more is lost than the steps since the last complete save"
        if program.returncode == SAVED_AND_STOPPED:
            assert done == logged
    continued, whole = run_lines([line, command_line("whole", 0)], tmp_path)
    assert (continued.status, whole.status) == (0, 0), continued.err + whole.err
    assert not done or f"continuing at step {done} of {STEPS}" in continued.err
    assert check_checkpoints(run) == STEPS
    assert curve(run) == curve(tmp_path / "whole") and [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.drill
def test_a_training_that_loses_a_rank_continues_with_the_same_losses(drill_seed: int, tmp_path: Path) -> None:
    """Two ranks; one of them, or the launcher, is killed twice."""
    draw = random.Random(drill_seed)
    shards.build(make("rule110", SIZES), tmp_path / "runs" / "data" / "rule110-tiny", {"train": 64, "test": 8}, 0)
    run, every, logged = tmp_path / "killed", draw.choice((1, 2, 5)), 0
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--", sys.executable, "-m", "sleeptrain"]
    for _ in range(2):
        program = start(tmp_path, [*launch, *command_line("killed", every)])
        try:
            wait_for(run, logged + draw.randint(1, STEPS // 3), program)
            victims = [program.pid, *children(program.pid)]
            with contextlib.suppress(ProcessLookupError):  # it had just finished
                os.kill(draw.choice(victims), signal.SIGKILL)
            assert program.stderr is not None
            printed = program.stderr.read()  # until rank 0, which has the pipe, has ended
            program.wait(WAIT)
        finally:
            program.kill()
        assert "Traceback" not in printed, printed
        logged, done = rows(run)[-1]["step"], check_checkpoints(run)
        assert 0 <= logged - done <= 2 * every
    for name, steps in (("killed", every), ("whole", 0)):
        program = start(tmp_path, [*launch, *command_line(name, steps)])
        printed = program.communicate(timeout=WAIT)[1]
        assert program.returncode == 0, printed
    assert check_checkpoints(run) == STEPS
    assert curve(run) == curve(tmp_path / "whole") and [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))


@pytest.mark.exhaustive
@pytest.mark.drill
def test_twenty_kills_of_one_run(drill_seed: int, tmp_path: Path) -> None:
    """Two ranks: one of them, both, or the launcher is killed, from before the first step on. Ten seeds are two hundred kills.

    Once there is a checkpoint, there is always a whole one, and no step is lost or repeated in the end.
    """
    draw, steps, done = random.Random(drill_seed), 60, 0
    shards.build(make("rule110", SIZES), tmp_path / "runs" / "data" / "rule110-tiny", {"train": 64, "test": 8}, 0)
    run, every = tmp_path / "killed", draw.choice((1, 2, 3))
    launch = [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--", sys.executable, "-m", "sleeptrain"]
    for _ in range(20):
        program = start(tmp_path, [*launch, *command_line("killed", every, steps)])
        try:
            time.sleep(draw.choice((0.0, draw.uniform(0, 10))))
            wait_for(run, min(steps - 1, done + draw.randint(0, 2 * every)), program)
            time.sleep(draw.uniform(0, 0.3))
            ranks = children(program.pid) if program.poll() is None else []
            victims = draw.choice([ranks[:1], ranks[1:], ranks, [program.pid]])
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            if not victims:
                program.kill()
            assert program.stderr is not None
            printed = program.stderr.read()
            program.wait(WAIT)
        finally:
            program.kill()
        assert "Traceback" not in printed, printed
        before, done = done, check_checkpoints(run)
        assert done >= before, "a checkpoint was lost"
    for name, interval in (("killed", every), ("whole", 0)):
        program = start(tmp_path, [*launch, *command_line(name, interval, steps)])
        printed = program.communicate(timeout=WAIT)[1]
        assert program.returncode == 0, printed
    assert curve(run) == curve(tmp_path / "whole") and [row["step"] for row in rows(run)] == list(range(1, steps + 1))
