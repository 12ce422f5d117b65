"""Task files by name: finds the files of configs/task, which `sleeptrain data build` and the planner read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleep_data.build import read_task_file
from sleep_data.tasks import TASKS, nearest
from sleeptrain.data.sources import DataMissing
from sleeptrain.errors import UserError
from sleeptrain.recipe.shipped import configs_root


def task_names() -> list[str]:
    """Names of the task files in configs/task."""
    return sorted(path.stem for path in (configs_root() / "task").glob("*.yaml"))


def with_build_command(error: UserError) -> list[str]:
    """The lines of an error, with the command that builds the data where it is missing."""
    if not isinstance(error, DataMissing):
        return error.errors
    known = error.folder.name in task_names()
    task = error.folder.name if known else "TASK"
    which = "or another task" if known else f"TASK is a file or one of {', '.join(task_names())}"
    return [f"{line} with: sleeptrain data build {task} --out {error.folder}  ({which})" for line in error.errors]


def task_file(task: str) -> dict[str, Any]:
    """The checked content of a task file.

    `task` is the path of a file, the name of a file in configs/task, or the name of a task, which then keeps its default
    parameters. UserError if it is none of these or the file is wrong.
    """
    choices = [Path(task), configs_root() / "task" / f"{task}.yaml"]
    path = next((path for path in choices if path.is_file()), None)
    if path is None:
        if task in TASKS:
            return {"task": task}
        known = sorted({*task_names(), *TASKS})
        raise UserError(f"there is no task {task!r}{nearest(task, known)}; there are {', '.join(known)}")
    try:
        return read_task_file(path)
    except ValueError as error:
        raise UserError(str(error)) from None
