"""The folder of downloaded shards of a machine: one folder for each content of a data set, and a limit to the size of all."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_OF_SHARD = re.compile(r"\.?(.+?\.mds)(\..+)?")
"""Names of a shard's files: the decompressed one, and those that a download leaves while it goes on or where it was cut."""


@dataclass(frozen=True)
class ShardCache:
    """Shards below `folder`, which any number of processes and jobs read and write. It imports filelock, as streaming does.

    Shards of a data set are in a folder named by the hash of its manifest, not by its URL: what is built again under the same
    URL is read from another folder, and the shards of the old one are removed like all that are not used any more.
    """

    folder: Path
    limit: int | None
    """Bytes of all files below `folder`; None for any number."""

    def folder_of(self, manifest_hash: str) -> Path:
        """The folder of a data set."""
        return self.folder / manifest_hash[:16]

    def touch(self, shard: Path) -> None:
        """Note that a shard is in use."""
        if self.limit is not None:
            now = time.time_ns()
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                os.utime(shard, ns=(now, now))

    def make_room(self, size: int) -> None:
        """Remove the shards that were used longest ago until `size` more bytes are within the limit.

        Shards that are prepared at this moment stay: while processes download at once, one shard each may be beyond the limit.
        """
        if self.limit is None:
            return
        with FileLock(self.folder / ".lock"):
            used, shards = self._content()
            for shard in sorted(shards, key=lambda one: max(state.st_mtime_ns for state in shards[one].values())):
                if used + size <= self.limit:
                    return
                used -= _remove(shard, shards[shard])

    def _content(self) -> tuple[int, dict[Path, dict[Path, os.stat_result]]]:
        """The bytes of all files, and the files of every shard."""
        used = 0
        shards: dict[Path, dict[Path, os.stat_result]] = defaultdict(dict)
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                try:
                    state = path.stat()
                except FileNotFoundError:  # another process has finished or removed it
                    continue
                used += state.st_size
                of_shard = _OF_SHARD.fullmatch(name)
                if of_shard and not name.endswith(".lock"):
                    shards[path.with_name(of_shard[1])][path] = state
        return used, shards


def lock_of(shard: Path) -> FileLock:
    """The lock of whoever prepares or removes a shard, given the path of its decompressed file."""
    return FileLock(shard.with_name(f".{shard.name}.lock"))


def _remove(shard: Path, files: dict[Path, os.stat_result]) -> int:
    """Remove a shard unless it is being prepared; returns the bytes that are free."""
    try:
        with lock_of(shard).acquire(blocking=False):
            for path in files:
                path.unlink(missing_ok=True)
    except Timeout:
        return 0
    return sum(state.st_size for state in files.values())
