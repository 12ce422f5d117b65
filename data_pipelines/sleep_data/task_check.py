"""Checks a task and its samples against the interface in `task.py`, so that a new task with a mistake writes no shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sleep_data.task import IGNORED, Arrays, Task

MEMBERS = (
    "name", "version", "label", "labels", "parameters", "vocabulary", "windows", "inputs", "notes", "blocks", "baselines",
)  # fmt: skip
"""What `Task` asks for."""
SEE = "class Task in sleep_data/task.py describes what a task has"


def check_task(task: Task) -> None:
    """Raise ValueError with everything that is wrong with members, windows and vocabulary of a task."""
    kind = type(task).__name__
    if missing := [name for name in MEMBERS if not hasattr(task, name)]:
        raise ValueError(f"task {kind} has no {', '.join(missing)}; {SEE}")
    if wrong := [*_window_problems(task), *_vocabulary_problems(task)]:
        raise ValueError(f"task {task.name}: {'; '.join(wrong)}; {SEE}")


def check_block(task: Task, split: str, block: Arrays) -> None:
    """Raise ValueError with everything that is wrong with a block of samples of a task."""
    if wrong := list(_column_problems(task, block)) or list(_value_problems(task, block)):
        raise ValueError(f"task {task.name}, a block of its {split} split: {'; '.join(wrong)}; {SEE}")


def _window_problems(task: Task) -> Iterator[str]:
    at = 0
    for number, window in enumerate(task.windows()):
        if window.start != at or window.stop <= window.start:
            yield f"window {number} has tokens {window.start} to {window.stop}, and must begin at {at} and not be empty"
        at = window.stop
    if not any(window.targets for window in task.windows()):
        yield "no window has targets, so that nothing would be trained"


def _vocabulary_problems(task: Task) -> Iterator[str]:
    vocabulary = task.vocabulary()
    if vocabulary.kind == "symbols" and len(vocabulary.symbols) != vocabulary.size:
        yield f"the vocabulary has {len(vocabulary.symbols)} symbols and size {vocabulary.size}"
    if not 0 <= vocabulary.pad < vocabulary.size:
        yield f"pad is {vocabulary.pad}, and ids are from 0 to {vocabulary.size - 1}"


def _column_problems(task: Task, block: Arrays) -> Iterator[str]:
    """Columns that are missing, not described, or of another shape or dtype."""
    wanted = {"tokens", "targets", "groups", "id", *(f"label_{name}" for name in task.labels())}
    if missing := sorted(wanted - {*block}):
        yield f"there is no column {', '.join(missing)}"
    if unknown := sorted({*block} - wanted):
        yield f"labels() does not describe {', '.join(unknown)}"
    rows, length = len(block.get("id", ())), task.windows()[-1].stop
    for name in sorted(wanted & {*block}):
        column = block[name]
        if name in ("tokens", "targets", "groups") and (column.shape != (rows, length) or column.dtype != np.int32):
            yield f"{name} is {column.dtype} {list(column.shape)}, and must be int32 [{rows}, {length}]"
        elif len(column) != rows:
            yield f"{name} has {len(column)} rows, and id has {rows}"


def _value_problems(task: Task, block: Arrays) -> Iterator[str]:
    """Ids outside the vocabulary, and targets in windows that are declared to have none."""
    size, tokens, targets = task.vocabulary().size, block["tokens"], block["targets"]
    if tokens.min() < 0 or tokens.max() >= size:
        yield f"tokens are from {tokens.min()} to {tokens.max()}, and ids from 0 to {size - 1}"
    if targets.max() >= size or (targets[targets != IGNORED] < 0).any():
        yield f"targets are up to {targets.max()} or negative; they are ids from 0 to {size - 1}, or {IGNORED} where nothing is scored"
    for number, window in enumerate(task.windows()):
        if not window.targets and (targets[:, window.start : window.stop] != IGNORED).any():
            yield f"window {number} has targets, and windows() declares it to have none"
