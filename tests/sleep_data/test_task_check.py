"""Tasks with one mistake each: what a build says of them, and that nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleep_data.copying import Copy
from sleep_data.shards import build
from sleep_data.task import Arrays, TaskWindow, Vocabulary
from sleep_data.tasks import TASKS, make

SIZES: dict[str, Any] = {"lengths": 12, "window": 8, "windows_of_string": 2}


class Spoilt(Copy):
    """The task `copy` with a change of its samples."""

    spoil: Callable[[Arrays], Arrays]

    def block(self, split: str, number: int, seed: int) -> Arrays:
        return self.spoil(super().block(split, number, seed))


def with_block(spoil: Callable[[Arrays], Arrays]) -> Copy:
    return type("Mine", (Spoilt,), {"spoil": staticmethod(spoil)})(**SIZES)


def scored_context(rows: Arrays) -> Arrays:
    rows["targets"][:, 0] = 1
    return rows


class Gap(Copy):
    def windows(self) -> tuple[TaskWindow, ...]:
        first, second, *others = super().windows()
        return (first, replace(second, start=second.start + 1), *others)


class WrongPad(Copy):
    def vocabulary(self) -> Vocabulary:
        return replace(super().vocabulary(), pad=99)


@dataclass(frozen=True)
class Bare:
    """A task of which only the parameters are written."""

    size: int = 4


WRONG = {
    "no members": (Bare(), "task Bare has no name, version, label, labels, parameters, vocabulary, windows, inputs, notes, blocks, baselines;"),
    "windows with a gap": (Gap(**SIZES), "window 1 has tokens 9 to 16, and must begin at 8"),
    "pad outside the vocabulary": (WrongPad(**SIZES), "pad is 99, and ids are from 0 to 28"),
    "no label": (with_block(lambda rows: {name: rows[name] for name in rows if name != "label_n"}), "there is no column label_n"),
    "a label that is not described": (with_block(lambda rows: rows | {"label_m": rows["label_n"]}), r"labels\(\) does not describe label_m"),
    "another dtype": (with_block(lambda rows: rows | {"tokens": rows["tokens"].astype(np.int64)}), r"tokens is int64 \[16, 32\], and must be int32 \[16, 32\]"),
    "too few rows": (with_block(lambda rows: rows | {"label_n": rows["label_n"][:7]}), "label_n has 7 rows, and id has 16"),
    "ids outside the vocabulary": (with_block(lambda rows: rows | {"tokens": rows["tokens"] + 1000}), "tokens are from 1000 to 1028, and ids from 0 to 28"),
    "targets outside the vocabulary": (with_block(lambda rows: rows | {"targets": rows["targets"] + 90}), "or -100 where nothing is scored"),
    "targets in a window of context": (with_block(scored_context), r"window 0 has targets, and windows\(\) declares it to have none"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_task_with_a_mistake_is_refused(tmp_path: Path, case: str) -> None:
    task, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as raised:
        build(task, tmp_path / "out", {"train": 16, "test": 0})  # type: ignore[arg-type]
    assert "class Task in sleep_data/task.py describes what a task has" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_task_that_is_no_dataclass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "mine", type("Mine", (), {}))
    with pytest.raises(ValueError, match="its class Mine must be a frozen dataclass of its parameters"):
        make("mine", {})
