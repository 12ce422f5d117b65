"""Shards from a task file: reads the file, applies overrides to its values and writes the shards that it describes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sleep_data import shards, text_build
from sleep_data.task import Task
from sleep_data.tasks import DEFAULTS, make, nearest
from sleep_data.text import Text

KEYS = ("task", "parameters", *DEFAULTS)
"""Keys that a task file may have."""


class DiskFull(Exception):
    """There is no room for the shards; the message is shown as it stands."""


def read_task_file(path: Path) -> dict[str, Any]:
    """The checked content of a task file. ValueError if it is not readable, not YAML or has unknown keys."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or "task" not in content:
        raise ValueError(f"{path} is no task file: a task file has the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{path}: {key!r} is not known{nearest(key, KEYS)}; the keys are {', '.join(KEYS)}")
    return content


def build(
    task: Task | Text,
    out: Path,
    samples: dict[str, int | None],
    seed: int = 0,
    *,
    processes: int = 1,
    progress: shards.Progress | None = None,
    shard_bytes: int = shards.SHARD_BYTES,
) -> dict[str, Any]:
    """Write the shards of a task, by `text_build.build` or `shards.build`, and return their manifest."""
    if isinstance(task, Text):
        return text_build.build(
            task, out, samples, seed, processes=processes, progress=progress, shard_bytes=shard_bytes
        )
    return shards.build(task, out, samples, seed, progress=progress, shard_bytes=shard_bytes)


def build_task(
    task_file: Mapping[str, Any],
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    processes: int = 1,
    progress: shards.Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the shards of a task to the folder `out` and return their manifest.

    task_file   content of a task file; `task` is required, everything else has a default
    overrides   values that replace those of the file: parameters of the task, and `train`, `test`, `seed`
    processes   processes that read text and write its shards; a generated task needs one
    progress    called with what is counted, the number so far, and its total or None
    note        called, before the build, with each remark on the inputs, such as which files are left out

    A folder that was built from the same request is not written again. ValueError if the request is wrong or `out` cannot
    be written; DiskFull if there is no room for it.
    """
    settings = DEFAULTS | {name: task_file[name] for name in DEFAULTS if name in task_file}
    parameters = dict(task_file.get("parameters") or {})
    for name, value in (overrides or {}).items():
        (settings if name in DEFAULTS else parameters)[name] = value
    _check_settings(settings)
    samples = {"train": settings["train"], "test": settings["test"]}
    try:
        task = make(task_file["task"], parameters)
        if note is not None:
            for line in task.notes():
                note(line)
        return build(task, Path(out), samples, settings["seed"], processes=processes, progress=progress)
    except OSError as error:
        why = ": ".join(filter(None, (error.strerror, error.filename))) or str(error)
        message = f"task {task_file['task']} cannot be built in {out}: {why}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{message}; make room, and run the same command again") from error
        raise ValueError(message) from error


def _check_settings(settings: Mapping[str, Any]) -> None:
    """ValueError unless the numbers of samples and the seed are whole numbers of at least 0; the samples may be None."""
    for name, value in settings.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not whole and (value is not None or name == "seed"):
            raise ValueError(f"{name}={value!r}: it must be a whole number of at least 0")
