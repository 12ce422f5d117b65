"""Which checkpoint a run continues from: the newest one that is whole, decided on rank 0, the same on every rank."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import torch.distributed as dist

from sleeptrain.checkpoint.folder import damaged, latest, set_aside, sweep
from sleeptrain.checkpoint.format import Damaged, FileRecord, Index, check_file, check_size, read_index
from sleeptrain.errors import UserError
from sleeptrain.parallel.collectives import on_first_rank
from sleeptrain.parallel.process import Process

PATIENCE = 90.0
"""Seconds that a rank waits to see files that rank 0 sees. Network file systems show new files late: NFS after up to a minute."""


def newest_whole(process: Process, folder: Path, patience: float = PATIENCE) -> tuple[Path, Index] | None:
    """The newest checkpoint whose files are all what was written, the same on every rank; None if there is none. A collective.

    Rank 0 decides. A damaged checkpoint is named and set aside, and the one before it is looked at. Every file is read by one
    rank. Raises UserError if all are damaged, and if a rank does not see the files that rank 0 sees.
    """
    on_first_rank(process, lambda: sweep(folder))
    while (found := on_first_rank(process, lambda: _choose(folder))) is not None:
        name, index = found
        if _whole_for_all(process, folder / name, index, patience):
            return folder / name, index
    return None


def _whole_for_all(process: Process, path: Path, index: Index, patience: float) -> bool:
    """Whether no rank finds a file of a checkpoint damaged; else it is set aside. A collective."""
    problems = [_check_share(process, path, index, patience)]
    if process.world > 1:
        problems *= process.world
        dist.all_gather_object(problems, problems[0])
    return on_first_rank(process, lambda: _is_whole(path, index, problems))


def _choose(folder: Path) -> tuple[str, Index] | None:
    """Name and index of the newest checkpoint whose files have their sizes; others are set aside."""
    while (path := latest(folder)) is not None:
        try:
            index = read_index(path)
            for name, record in index.files.items():
                check_size(path / name, record)
            return path.name, index
        except Damaged as error:
            _report(str(error), path)
    if aside := damaged(folder):
        raise UserError(
            f"{folder} has no whole checkpoint, and damaged ones: {', '.join(path.name for path in aside)}; "
            "restore one, or delete them to start from the first step"
        )
    return None


def _check_share(process: Process, path: Path, index: Index, patience: float) -> dict[str, str]:
    """Read this rank's share of the files; what is wrong with them, by name."""
    problems = {}
    for name, record in sorted(index.files.items()):
        # In the same layout a rank reads its own part again to load it. config.yaml has no number.
        number = int("".join(filter(str.isdigit, name)) or 0)
        if number % process.world == process.rank and (problem := _wait_and_check(path / name, record, patience)):
            problems[name] = f"rank {process.rank} on {socket.gethostname()}: {problem}"
    return problems


def _is_whole(path: Path, index: Index, problems: list[dict[str, str]]) -> bool:
    """Whether no rank found a problem; else the checkpoint is set aside. On rank 0.

    Raises UserError where a file that another rank finds damaged is whole for rank 0, which sees another file then.
    """
    for name, problem in [found for rank in problems for found in rank.items()]:
        try:
            check_file(path / name, index.files[name])
        except Damaged as error:
            _report(str(error), path)
            return False
        raise UserError(
            f"{problem}, and rank 0 on {socket.gethostname()} finds it whole; the run folder must be on a file system "
            "that all nodes share"
        )
    return True


def _wait_and_check(path: Path, record: FileRecord, patience: float) -> str | None:
    """What is wrong with a file; waits for one that rank 0 sees and this rank does not see yet."""
    deadline = time.monotonic() + patience
    while True:
        try:
            check_size(path, record)
            break
        except Damaged as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.2)
    try:
        check_file(path, record)
    except Damaged as error:
        return str(error)
    return None


def _report(problem: str, path: Path) -> None:
    """Set a checkpoint aside and say so."""
    aside = set_aside(path)
    print(f"warning: {problem}; it is now {aside}, and the checkpoint before it is used", file=sys.stderr, flush=True)
