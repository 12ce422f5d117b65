"""mosaicml-streaming's dataset over our sources. Imports the library: import this module inside functions only.

The library finds its ranks in environment variables and torch.distributed, and makes the ranks of a machine wait for each
other through names in /dev/shm. Here each rank is a job of its own to it (`_alone`) that reads its part of the order of all:
no rank waits for another, one that dies blocks none, ranks need not be neighbours, and no environment is needed. What
processes share, the files of shards, is guarded by file locks, which the system releases with their process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock

from sleep_data.patches.torchvision import ensure_torchvision

ensure_torchvision()  # in spawned workers too: they import this module before anything of the library

import streaming.base.dataset  # noqa: E402
import streaming.base.shared.prefix  # noqa: E402
from streaming import StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.shared import SharedMemory  # noqa: E402
from streaming.base.world import World  # noqa: E402

from sleeptrain.data.shards import Shards, unpacked  # noqa: E402
from sleeptrain.data.sources import Sources  # noqa: E402

__all__ = ["RowDataset", "StreamingDataLoader"]

BLOCK = 1 << 18
"""Rows within which each shard is spread: about 200 shards of 4,096-token samples at 64 MiB a shard."""
AHEAD = 16
"""Batches ahead of which a shard begins to be fetched or unpacked."""
SEEDS_APART = 1 << 32
"""The library shuffles epoch e by seed + e; neighbouring seeds would give the same epochs, one later."""
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
UNGROUPED = SimpleNamespace(is_available=lambda: False)
"""Stands for torch.distributed where there is none."""


class RowDataset(StreamingDataset):
    """Samples of one split of all sources: each a dict of its columns and "row", its number; or {"error": why}.

    Iterated, it gives the rows of rank `rank` of `world`: those at positions rank, rank + world, ... of the order of an
    epoch, which is the same for all ranks. By number it gives any row.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        batch: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        weighted: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Open the sources; `weighted` by their proportions. `batch` is what a data loader takes at once."""
        locks = tempfile.mkdtemp(prefix="sleeptrain-locks-")
        self._folder = weakref.finalize(self, _in_process, os.getpid(), shutil.rmtree, locks, True)
        with _alone(locks):
            super().__init__(
                streams=[Shards(source, sources.split, weighted) for source in sources.opened],
                num_canonical_nodes=1,  # one order, however many machines there are
                batch_size=batch,
                predownload=AHEAD * batch,
                shuffle=shuffle,
                shuffle_algo="py1e",
                shuffle_seed=seed * SEEDS_APART,
                shuffle_block_size=BLOCK,
            )
        self._parallel_rank_world = World(num_nodes=1, ranks_per_node=world, workers_per_rank=1, worker=rank)
        self._ready: set[int] = set()
        arrays = (self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times)
        self._blocks = [self._locals_shm, self._shared_barrier._arr.shm, *(array.shm for array in arrays)]
        self._names = weakref.finalize(self, _in_process, os.getpid(), _remove, self._blocks)
        self._names.atexit = False  # type: ignore[misc]  # the library does it then

    def start_at(self, epoch: int, sample: int) -> None:
        """Let the next iteration begin at a position of an epoch, counted over all ranks."""
        self.go_on()
        self.next_epoch = epoch  # a state of an earlier epoch would be taken for an old one
        state = {"epoch": epoch, "sample_in_epoch": sample, "num_canonical_nodes": 1, "initial_physical_nodes": 1}
        self.load_state_dict(state | {"shuffle_seed": self.shuffle_seed})
        self._blocks.append(self._resume_shm)

    def go_on(self) -> None:
        """Let the next iteration be the epoch after this one, which all workers have begun.

        So it would be by itself; but each epoch would open the place to start at once more, and none closes it.
        """
        if hasattr(self, "_resume_shm"):
            self._blocks.remove(self._resume_shm)
            _remove([self._resume_shm])
            del self._resume_shm

    def release(self) -> None:
        """End the background threads and give back the names in /dev/shm; nothing can be read any more."""
        if hasattr(self, "_iterator"):
            self._iterator.non_blocking_exit()
            self._executor.shutdown()
        self._names()
        self._folder()

    def __getstate__(self) -> dict[str, Any]:
        """For spawned workers: what belongs to the process that made it stays there."""
        return {name: value for name, value in vars(self).items() if name not in ("_folder", "_names", "_blocks")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self, "_iterator"):
            self._iterator.exit()  # as the library does first
            self._iterator.sample_ids = np.empty(0, np.int64)  # Python keeps each iterator to the end of the process
        try:
            yield from super().__iter__()
        finally:
            if hasattr(self, "_iterator"):
                self._iterator.non_blocking_exit()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """As in the library, which would take a file lock and look at the file system for every sample."""
        if blocking or shard_id not in self._ready:
            super().prepare_shard(shard_id, blocking)
            self._ready.add(shard_id)

    def where(self, row: int) -> str:
        """The shard that a row is in, and its place there."""
        shard, place = self.spanner[row]
        return f"{unpacked(self.shards[shard])}, sample {place} in it"

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One row. Errors are values: an exception would bring the stack trace of a worker, or only end the epoch."""
        try:
            return super().get_item(int(sample_id), retry) | {"row": int(sample_id)}
        except Exception as error:
            shard_id, _ = self.spanner[sample_id]
            stream, raw = self.streams[self.stream_per_shard[shard_id]], unpacked(self.shards[shard_id])
            return {"error": stream.failures.get(raw) or stream.damage(raw, error)}


@contextmanager
def _alone(locks: str) -> Iterator[None]:
    """Let the library take this process for a whole job, with its lock files in a folder of its own.

    Otherwise it would join or start a process group, and leave two files in the folder for temporary files that shift the
    names of all later jobs. One process at a time: it finds a free name and takes it in two steps.
    """
    modules: tuple[Any, ...] = (streaming.base.dataset, streaming.base.shared.prefix)
    common = tempfile.gettempdir()
    with FileLock(Path(common, f"sleeptrain-{os.getuid()}.lock"), poll_interval=0.005):
        environment = {name: os.environ.get(name) for name in ONE_PROCESS}
        groups = [module.dist for module in modules]
        try:
            os.environ.update(ONE_PROCESS)
            tempfile.tempdir = locks
            for module in modules:
                module.dist = UNGROUPED
            yield
        finally:
            for module, group in zip(modules, groups, strict=True):
                module.dist = group
            tempfile.tempdir = common
            for name, value in environment.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _in_process(owner: int, do: Any, *arguments: Any) -> None:
    """Do it, unless this is a forked child that holds a copy."""
    if os.getpid() == owner:
        do(*arguments)


def _remove(blocks: list[SharedMemory]) -> None:
    for block in blocks:
        atexit.unregister(block.cleanup)
        block.cleanup()
