"""Check of files that ended runs have left in shared memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sleeptrain.cli.checks.check import CheckResult
from sleeptrain.cli.checks.machine import GIB, SHARED_MEMORY

LEFTOVER = re.compile(r"\d{6,10}_[a-z_]+|deepspeed_\w+|torch_\d+\w*|nccl-\w+|psm_\w+|sem\.mp-\w+")
"""Names of the files that streaming, DeepSpeed, torch, NCCL and multiprocessing create in shared memory."""


def check_leftovers() -> Iterator[CheckResult]:
    """Files of ended runs in /dev/shm, with their total size."""
    files = leftovers(SHARED_MEMORY, mapped_files())
    if not files:
        yield CheckResult("leftovers", "ok", f"none in {SHARED_MEMORY}", needed=False)
        return
    size = sum(path.lstat().st_size for path in files) / GIB
    shown = " ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
    detail = f"{len(files)} files of ended runs, {size:.1f} GiB: {shown}"
    yield CheckResult("leftovers", "failed", detail, "remove them with rm", False)


def leftovers(folder: Path, used: set[str]) -> list[Path]:
    """This user's files in `folder` that a training run has created and that are not among the `used` paths."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if LEFTOVER.fullmatch(path.name) and path.lstat().st_uid == os.getuid() and str(path) not in used
    ]


def mapped_files() -> set[str]:
    """Paths of the files that this user's processes have mapped."""
    paths: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            paths |= {
                line.split(maxsplit=5)[5]
                for line in maps.read_text().splitlines()
                if line.count("/") and len(line.split()) > 5
            }
        except OSError:
            continue  # the process has ended, or belongs to another user
    return paths
