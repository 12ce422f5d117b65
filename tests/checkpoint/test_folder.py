"""The folder of checkpoints: which are kept, and what killed processes leave behind."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sleeptrain import checkpoint
from sleeptrain.checkpoint.folder import KeepPolicy, commit, prune, staging_folder, step_folder, sweep
from tests.checkpoint.written import write_weights

WEIGHTS = {"weight": torch.arange(6.0)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_and_every_nth_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        newest = write_weights(tmp_path, step, WEIGHTS)
        prune(tmp_path, KeepPolicy(newest=2, every=3), newest)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 6, 7)]
    assert checkpoint.latest(tmp_path) == step_folder(tmp_path, 7)


def test_the_best_of_those_that_were_evaluated_is_kept(tmp_path: Path) -> None:
    """Of equal ones the newest. One that cannot be read, and one whose loss is not finite, is not the best."""
    assert checkpoint.best(tmp_path) is None
    for step, loss in enumerate([math.nan, 1.5, 1.5, 1.7, None, 1.6], 1):
        prune(tmp_path, KeepPolicy(newest=2), write_weights(tmp_path, step, WEIGHTS, eval_loss=loss))
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 5, 6)]
    assert checkpoint.best(tmp_path) == (step_folder(tmp_path, 3), 1.5)
    (step_folder(tmp_path, 3) / "checkpoint.json").write_text("{")
    assert checkpoint.best(tmp_path) == (step_folder(tmp_path, 6), 1.6)


def test_what_has_just_been_written_is_kept_whatever_its_step(tmp_path: Path) -> None:
    for step in (5, 6):
        write_weights(tmp_path, step, WEIGHTS)
    prune(tmp_path, KeepPolicy(newest=2), write_weights(tmp_path, 3, WEIGHTS))
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 5, 6)]


def test_without_a_number_all_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        prune(tmp_path, KeepPolicy(), write_weights(tmp_path, step, WEIGHTS))
    assert len(checkpoint.checkpoints(tmp_path)) == 3


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    write_weights(tmp_path, 1, WEIGHTS)
    for name in ("step-x", "steps", "step-00000003.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003.old" / "checkpoint.json").write_text("{}")
    (tmp_path / "step-00000004").touch()
    assert checkpoint.checkpoints(tmp_path) == [tmp_path / "step-00000001"]


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    write_weights(tmp_path, 2, WEIGHTS)
    write_weights(tmp_path / "other", 2, {"weight": torch.zeros(1)}).rename(staging_folder(tmp_path, 2))
    path = commit(tmp_path, 2)
    assert checkpoint.load_weights(path)["weight"].tolist() == [0.0] and not list(tmp_path.glob(".*"))


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    """One that was moved away to be replaced, and was not, comes back."""
    write_weights(tmp_path, 1, WEIGHTS)
    write_weights(tmp_path, 2, WEIGHTS).rename(tmp_path / ".replaced-step-00000002")
    write_weights(tmp_path, 3, WEIGHTS).rename(tmp_path / ".step-00000003.part")
    (tmp_path / ".trash-step-00000000").mkdir()
    (tmp_path / ".replaced-step-00000001").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    sweep(tmp_path / "none")
