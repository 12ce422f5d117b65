"""The dataset of mosaicml-streaming over the sources. It imports the library: import this module inside functions only.

The library takes ranks from environment variables and torch.distributed, and synchronises the ranks of a machine through
shared memory in /dev/shm. Here every rank is a separate job for the library (`_single_process`) and reads its part of the
common order. So no rank waits for another, a rank that dies does not block the others, ranks may be on any machine, and no
environment variable is needed. The names in shared memory are drawn at random, so that jobs that start at once do not take
the same ones. Processes share the files of shards only; file locks guard them, which the system releases when their process
ends.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from sleep_data.patches.streaming_import import import_streaming

import_streaming()  # in spawned workers, too

import streaming.base.dataset  # noqa: E402
from streaming import StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.dataset import _ShardState  # noqa: E402
from streaming.base.shared import SharedMemory  # noqa: E402
from streaming.base.world import World  # noqa: E402

from sleeptrain.data.shards import ShardStream, decompressed_path  # noqa: E402
from sleeptrain.data.sources import Sources  # noqa: E402

__all__ = ["RowDataset", "StreamingDataLoader"]

SHUFFLE_BLOCK = 1 << 18
"""Rows of a shuffle block, within which each shard is spread: about 200 shards of 4,096-token samples at 64 MiB a shard."""
PREDOWNLOAD = 16
"""Batches by which shards are downloaded and decompressed ahead."""
SEED_STRIDE = 1 << 32
"""Factor between seeds: the library shuffles epoch e with seed + e, so that seed s + 1 would repeat the epochs of seed s."""
NAMES = 10**10
"""Number of prefixes of names in shared memory; with one of ten digits the longest name has 30 characters, of 31 that macOS allows."""
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""Environment of a job of one process."""
NO_DISTRIBUTED = SimpleNamespace(is_available=lambda: False)
"""Replaces torch.distributed in modules of the library."""


class RowDataset(StreamingDataset):
    """Samples of one split of all sources: dicts of their columns and "row", the number of the row; or {"error": message}.

    Iteration yields the rows of rank `rank` of `world`: positions rank, rank + world, ... of the order of an epoch, which is
    equal on all ranks. Indexing returns any row by its number.
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
        """Open the sources, `weighted` by their proportions or not; `batch` is the batch size of the data loader."""
        lock_folder = tempfile.mkdtemp(prefix="sleeptrain-locks-")
        self._remove_locks = weakref.finalize(self, _call_in_process, os.getpid(), shutil.rmtree, lock_folder, True)
        with _single_process(lock_folder):
            super().__init__(
                streams=[ShardStream(source, sources.split, weighted) for source in sources.opened],
                num_canonical_nodes=1,  # one order, whatever the number of machines
                batch_size=batch,
                predownload=PREDOWNLOAD * batch,
                shuffle=shuffle,
                shuffle_algo="py1e",
                shuffle_seed=seed * SEED_STRIDE,
                shuffle_block_size=SHUFFLE_BLOCK,
            )
        self._prepared: set[int] = set()
        self._parallel_rank_world = World(num_nodes=1, ranks_per_node=world, workers_per_rank=1, worker=rank)
        arrays = (self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times)
        self._shared_memory = [self._locals_shm, self._shared_barrier._arr.shm, *(array.shm for array in arrays)]
        self._unlink = weakref.finalize(self, _call_in_process, os.getpid(), _unlink_blocks, self._shared_memory)
        self._unlink.atexit = False  # type: ignore[misc]  # the library unlinks at exit

    def start_at(self, epoch: int, sample: int) -> None:
        """Start the next iteration at a position of an epoch, counted over all ranks."""
        self.continue_with_next_epoch()
        self.next_epoch = epoch  # the library ignores the state of an epoch before its next one
        state = {"epoch": epoch, "sample_in_epoch": sample, "num_canonical_nodes": 1, "initial_physical_nodes": 1}
        self.load_state_dict(state | {"shuffle_seed": self.shuffle_seed})
        self._shared_memory.append(self._resume_shm)

    def continue_with_next_epoch(self) -> None:
        """Start the next iteration at the epoch after this one, which all workers have begun.

        The library does so by default, but opens the shared memory of the resume position again in each epoch and never
        closes it. Here it is unlinked.
        """
        if hasattr(self, "_resume_shm"):
            self._shared_memory.remove(self._resume_shm)
            _unlink_blocks([self._resume_shm])
            del self._resume_shm

    def release(self) -> None:
        """End the background threads and unlink the shared memory; the dataset cannot be read afterwards."""
        if hasattr(self, "_iterator"):
            self._iterator.non_blocking_exit()
            self._executor.shutdown()
        self._unlink()
        self._remove_locks()

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned workers, without the resources that the creating process releases."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_remove_locks", "_unlink", "_shared_memory")
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self, "_iterator"):
            self._iterator.exit()  # as in the library
            self._iterator.sample_ids = np.empty(0, np.int64)  # Python keeps each iterator until the process exits
        try:
            yield from super().__iter__()
        finally:
            if hasattr(self, "_iterator"):
                self._iterator.non_blocking_exit()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Prepare a shard for this process; `blocking` is false ahead of time, for every sample, and true where it cannot be read.

        The library would do so once for all workers of a rank, take a file lock for every sample, and remove shards from a cache
        without knowing of other ranks and jobs.
        """
        stream = self.streams[self.stream_per_shard[shard_id]]
        if blocking or stream.cached or shard_id not in self._prepared:
            stream.prepare_shard(self.shards[shard_id])
            self._prepared.add(shard_id)
            self._shard_states[shard_id] = _ShardState.LOCAL  # no other worker waits for it

    def where(self, row: int) -> str:
        """The shard of a row, and its number in the shard."""
        shard, sample = self.spanner[row]
        return f"{decompressed_path(self.shards[shard])}, sample {sample} in it"

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One row, or {"error": message}: an exception would show the stack trace of a worker, or end the epoch silently."""
        shard_id, _ = self.spanner[sample_id]
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        if (
            shard_id not in self._prepared
        ):  # the library reads a file that is there without asking whether it is verified
            self.prepare_shard(shard_id)
        if stream.failures and (failure := stream.failures.get(decompressed_path(shard))):
            return {"error": failure}
        try:
            return super().get_item(int(sample_id), retry) | {"row": int(sample_id)}
        except Exception as error:
            path = decompressed_path(shard)
            return {"error": stream.failures.get(path) or stream.read_failure(path, error)}


@contextmanager
def _single_process(lock_folder: str) -> Iterator[None]:
    """Makes the library treat this process as a job of one process, with its lock files in `lock_folder`.

    Otherwise it would join or start a process group, leave two files in the folder for temporary files, and look for a free
    name in shared memory and take it in two steps, between which another job can take the same one.
    """
    library: Any = streaming.base.dataset
    temporary, dist, prefix = tempfile.gettempdir(), library.dist, library.get_shm_prefix
    environment = {name: os.environ.get(name) for name in ONE_PROCESS}
    try:
        os.environ.update(ONE_PROCESS)
        tempfile.tempdir = lock_folder
        library.dist, library.get_shm_prefix = NO_DISTRIBUTED, _shared_memory_prefix
        yield
    finally:
        library.dist, library.get_shm_prefix = dist, prefix
        tempfile.tempdir = temporary
        for name, value in environment.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _shared_memory_prefix(*_arguments: Any) -> tuple[int, SharedMemory]:
    """A random prefix of names in shared memory, and the block that the library expects to be created with it."""
    prefix = secrets.randbelow(NAMES)
    return prefix, SharedMemory(f"{prefix:06}_locals", create=True, size=1)


def _call_in_process(owner: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in the process that registered it, not in a forked child, which holds a copy."""
    if os.getpid() == owner:
        function(*arguments)


def _unlink_blocks(blocks: list[SharedMemory]) -> None:
    """Remove shared memory from /dev/shm, and its cleanup at exit."""
    for block in blocks:
        atexit.unregister(block.cleanup)
        block.cleanup()
