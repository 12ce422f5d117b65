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

from sleeptrain.data.shards import ShardStream, decompressed_path  # noqa: E402
from sleeptrain.data.sources import Sources  # noqa: E402
from sleeptrain.data.worker_rows import RankRows, WorkerRows  # noqa: E402
from sleeptrain.data.worker_signals import start_resource_tracker  # noqa: E402

__all__ = ["RowDataset", "StreamingDataLoader"]

PREDOWNLOAD = 16
"""Batches by which shards are downloaded and decompressed ahead."""
NAMES = 10**10
"""Number of prefixes of names in shared memory; with one of ten digits the longest name has 30 characters, of 31 that macOS allows."""
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""Environment of a job of one process."""
NO_DISTRIBUTED = SimpleNamespace(is_available=lambda: False)
"""Replaces torch.distributed in modules of the library."""


class RowDataset(StreamingDataset):
    """Samples of one split of all sources: dicts of their columns, "row", the number of the row, and where there are several
    sources "source", the number of its own; or {"error": message}.

    Indexing returns any row by its number. Iteration has no end; it yields what the rank `reads`.
    """

    def __init__(self, sources: Sources, reads: RankRows | None = None) -> None:
        """Open the sources that have rows."""
        start_resource_tracker()
        lock_folder = tempfile.mkdtemp(prefix="sleeptrain-locks-")
        self._remove_locks = weakref.finalize(self, _call_in_process, os.getpid(), shutil.rmtree, lock_folder, True)
        micro = 1 if reads is None else reads.micro
        with _single_process(lock_folder):
            super().__init__(
                streams=[ShardStream(source, sources.split) for source in sources.opened if source.rows],
                num_canonical_nodes=1,
                batch_size=micro,
                predownload=PREDOWNLOAD * micro,
            )
        self._reads = reads
        self._stops = np.cumsum([source.rows for source in sources.opened])
        self._prepared: set[int] = set()
        arrays = (self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times)
        self._shared_memory = [self._locals_shm, self._shared_barrier._arr.shm, *(array.shm for array in arrays)]
        self._unlink = weakref.finalize(self, _call_in_process, os.getpid(), _unlink_blocks, self._shared_memory)
        self._unlink.atexit = False  # type: ignore[misc]  # the library unlinks at exit

    def _get_work(self, epoch: int, sample_in_epoch: int) -> Any:
        """The order of this worker, which the library asks for where it begins an epoch."""
        assert self._reads is not None
        world = self._parallel_worker_world
        return WorkerRows(self._reads, world.worker_of_rank, world.workers_per_rank, PREDOWNLOAD + 3)

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
        # The library reads a file that is there without asking whether it is verified.
        if shard_id not in self._prepared:
            self.prepare_shard(shard_id)
        if stream.failures and (failure := stream.failures.get(decompressed_path(shard))):
            return {"error": failure}
        try:
            sample = super().get_item(int(sample_id), retry) | {"row": int(sample_id)}
            if len(self._stops) > 1:
                sample["source"] = int(np.searchsorted(self._stops, sample_id, side="right"))
            return sample
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
