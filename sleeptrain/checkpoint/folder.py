"""The folder of a run's checkpoints: which there are, which are kept, and what killed processes leave behind.

step-00000100             a complete checkpoint; made by renaming, so that none is ever half written
.step-00000200.part       one that is being written
.trash-...                one that is being deleted
.replaced-...             one whose step is being saved again
damaged-step-00000100     one that failed verification
"""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sleeptrain.checkpoint.format import Damaged, read_index, sync_folder
from sleeptrain.errors import UserError

DAMAGED = "damaged-"


@dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints are kept. The best one of those that were evaluated is kept, too."""

    newest: int = 0
    """Number of newest ones; 0 keeps all."""
    every: int = 0
    """Those of steps that are multiples of this are kept for ever; 0: none."""


KEEP_ALL = KeepPolicy()


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in order of step. Whether their files are there and whole is not looked at.

    A folder with the name of one is complete when it gets that name. One without files has lost them: it counts, so that it is named
    as damaged, and a run whose checkpoints are all like that does not begin again.
    """
    return sorted(path for path in folder.glob("step-*") if step_of(path) is not None and path.is_dir())


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step; None if there is none."""
    return found[-1] if (found := checkpoints(folder)) else None


def best(folder: Path) -> tuple[Path, float] | None:
    """The checkpoint with the lowest finite loss on held-out data, of several the newest, and that loss; None without any."""
    found: tuple[Path, float] | None = None
    for path in checkpoints(folder):
        with suppress(Damaged, UserError):  # another version of the format
            loss = read_index(path).eval_loss
            if loss is not None and math.isfinite(loss) and (found is None or loss <= found[1]):
                found = path, loss
    return found


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, by its name; None if it has not the name of one."""
    digits = path.name.removeprefix("step-")
    return int(digits) if path.name.startswith("step-") and digits.isdecimal() else None


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def staging_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written."""
    return folder / f".step-{step:08d}.part"


def commit(folder: Path, step: int) -> Path:
    """Rename the staging folder of a step, whose files are on the disk, to its final name."""
    final = step_folder(folder, step)
    replaced = folder / f".replaced-{final.name}"
    if final.exists():
        final.rename(replaced)
    staging_folder(folder, step).rename(final)
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def prune(folder: Path, keep: KeepPolicy, newest: Path) -> None:
    """Delete the checkpoints that are not kept. `newest` has just been written and is kept, whatever its step."""
    if keep.newest == 0:
        return
    evaluated = best(folder)
    kept = {newest} if evaluated is None else {newest, evaluated[0]}
    for path in checkpoints(folder)[: -keep.newest]:
        kept_for_ever = keep.every > 0 and (step_of(path) or 0) % keep.every == 0
        if path not in kept and not kept_for_ever:
            trash = folder / f".trash-{path.name}"
            path.rename(trash)  # a killed deletion leaves no folder that looks like a checkpoint
            shutil.rmtree(
                trash, ignore_errors=True
            )  # on a network file system an open file may stay; it is swept later


def sweep(folder: Path) -> None:
    """Remove what killed processes left behind. Nothing may be writing into the folder."""
    for path in folder.glob(".replaced-*"):
        final = folder / path.name.removeprefix(".replaced-")
        if not final.exists():
            path.rename(final)
    for pattern in (".step-*.part", ".trash-*", ".replaced-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not found again; returns its new path."""
    number, target = 1, path.with_name(DAMAGED + path.name)
    while target.exists():
        number, target = number + 1, path.with_name(f"{DAMAGED}{path.name}-{number + 1}")
    path.rename(target)
    sync_folder(path.parent)
    return target


def damaged(folder: Path) -> list[Path]:
    """The checkpoints that were set aside."""
    return sorted(folder.glob(f"{DAMAGED}step-*"))
