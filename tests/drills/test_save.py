"""Drill: a rank is killed at every file operation of a save, in the background or not; a whole checkpoint is always there."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sleep_launch import local
from sleeptrain import checkpoint
from tests.distributed import run
from tests.engine.tiny import same, snapshot, train

SAVES = """
import sys
from pathlib import Path
from tests.drills.test_save import save_and_die

save_and_die(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True")
"""


def counted(die: Callable[[], None]) -> None:
    """Calls `die` before every file operation that a save makes: files opened for writing, flushed, renamed, removed."""
    opening, fsync, rename, mkdir, rmdir = Path.open, os.fsync, Path.rename, Path.mkdir, os.rmdir

    def before(function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if when(*args):
                die()
            return function(*args, **options)

        return call

    Path.open = before(opening, lambda path, mode="r", *_: "w" in mode)  # type: ignore[method-assign]
    os.fsync, os.rmdir = before(fsync), before(rmdir)
    Path.rename, Path.mkdir = before(rename), before(mkdir)  # type: ignore[method-assign]


def save_and_die(folder: Path, rank: int, operation: int, background: bool) -> None:
    """Save steps 1 to 3, keeping one, and kill rank `rank` at a file operation of the saves of steps 2 and 3."""
    from tests.checkpoint.saving import fresh

    engine, seen = fresh("adamw", "fp32", 1), [0]
    saver = checkpoint.Saver(engine, folder, checkpoint.KeepPolicy(1), background=background)
    train(engine, range(1))
    saver.save(1, {"at": 1}, {})
    saver.wait()

    def die() -> None:
        seen[0] += 1
        if seen[0] == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    if engine.process.rank == rank:
        counted(die)
    for step in (2, 3):
        train(engine, range(step - 1, step))
        saver.save(step, {"at": step}, {})
    saver.wait()


def resumed(folder: str) -> tuple[int, bool]:
    """The step of the newest whole checkpoint, and whether the run goes on from it as one that never stopped."""
    from tests.checkpoint.saving import fresh, load

    whole, engine = fresh("adamw", "fp32", 1), fresh("adamw", "fp32", 1, seed=3)
    train(whole, range(5))
    step = load(engine, Path(folder)).step
    train(engine, range(step, 5))
    return step, same(snapshot(engine), snapshot(whole))


def killed(folder: Path, world: int, rank: int, operation: int, background: bool) -> bool:
    """Whether the saves were cut off by the kill; else there are fewer operations."""
    script = folder.with_suffix(".py")
    script.write_text(SAVES)
    root = str(Path(__file__).parents[2])
    status = local.run(
        [sys.executable, str(script), str(folder), str(rank), str(operation), str(background)],
        world, env={"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}, log_dir=folder.with_suffix(".logs"), timeout=120,
    )  # fmt: skip
    return status != 0


def check(folder: Path, world: int) -> None:
    whole = checkpoint.checkpoints(folder)
    assert whole, "no checkpoint is left"
    for path in whole:
        checkpoint.load_weights(path)  # raises if a file is not what was written
    for step, equal in run(resumed, world, str(folder)):
        assert equal and step >= 1
    assert not list(folder.glob(".*")), "leftovers were not swept"


@pytest.mark.slow
@pytest.mark.drill
def test_a_rank_killed_in_a_save_costs_no_checkpoint(drill_seed: int, tmp_path: Path) -> None:
    """One of two ranks, at a random operation of a random one of two saves."""
    draw = random.Random(drill_seed)
    folder = tmp_path / "checkpoints"
    rank, operation, background = draw.randrange(2), draw.randint(1, 20), draw.random() < 0.5
    killed(folder, 2, rank, operation, background)
    check(folder, 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("background", [True, False])
def test_a_kill_at_every_operation_of_a_save_costs_no_checkpoint(background: bool, tmp_path: Path) -> None:
    operation = 1
    while killed(tmp_path / str(operation), 1, 0, operation, background):
        check(tmp_path / str(operation), 1)
        operation += 1
    assert operation > 20, "a save makes more file operations than that"
