"""The stream of mosaicml-streaming over one source, whose shards several processes and jobs can prepare at the same time.

It imports the library: import this module inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sleep_data.patches.streaming_import import import_streaming

import_streaming()

from streaming import Stream  # noqa: E402
from streaming.base.format.mds.reader import MDSReader  # noqa: E402

from sleeptrain.data.row_cut import RowCut  # noqa: E402
from sleeptrain.data.sources import OpenedSource  # noqa: E402


class ShardStream(Stream):
    """The shards of one source, each downloaded and decompressed by one process at a time.

    The dataset sees a local stream even if shards are downloaded: the library refuses two jobs that download to one folder,
    and takes the leftovers of a killed job for a running one.
    """

    def __init__(self, source: OpenedSource, split: str) -> None:
        options: dict[str, Any] = {"local": source.folder, "split": split, "validate_hash": "xxh64"}
        super().__init__(**options)
        options |= {"keep_zip": source.remote is None, "download_retry": 2, "download_timeout": 300}
        self._download_stream = Stream(remote=source.remote, **options)
        self._cut = source.cut
        self.failures: dict[Path, str] = {}
        """Error messages of the shards that this process could not prepare, by the path of the decompressed shard."""

    def get_shards(self, world: Any, allow_unsafe_types: bool) -> list[Any]:
        """The readers of the shards, whose samples are rows where the shards hold blocks of a token stream."""
        shards: list[Any] = super().get_shards(world, allow_unsafe_types)
        if self._cut is None:
            return shards
        left, readers = self._cut.rows, []
        for shard in shards:
            readers.append(RowReader(shard, self._cut, min(left, shard.samples * self._cut.per_block)))
            left -= readers[-1].samples
        return readers

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: np.ndarray) -> None:
        """Record which shards are decompressed. Remove incomplete files, such as a power failure leaves."""
        for i, shard in enumerate(shards):
            path = decompressed_path(shard)
            complete = _is_complete(path, shard.raw_data.bytes)
            cache_usage_per_shard[i] = shard.raw_data.bytes if complete else 0
            if path.is_file() and not complete:
                path.unlink(missing_ok=True)

    def prepare_shard(self, shard: Any) -> int:
        """Download, verify and decompress a shard. Errors are recorded, not raised: other workers would wait forever."""
        path = decompressed_path(shard)
        if path in self.failures:
            return 0
        try:
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not _is_complete(path, shard.raw_data.bytes):  # another process may have prepared it meanwhile
                    path.unlink(missing_ok=True)
                    compressed = path.with_name((shard.zip_data or shard.raw_data).basename)
                    if (
                        self._download_stream.remote is None and not compressed.exists()
                    ):  # the library would retry forever
                        self.failures[path] = f"shard {compressed} is missing; build or copy the data again"
                    else:
                        self._download_stream.prepare_shard(shard)
        except Exception as error:  # storage backends raise errors of any type
            self.failures[path] = self.read_failure(path, error)
        return 0

    def read_failure(self, path: Path, error: Exception) -> str:
        """The error message for a shard that cannot be read."""
        if "Checksum" in str(error):
            return f"shard {path} is damaged (its checksum does not match); build or copy the data again"
        origin = f" from {self._download_stream.remote}" if self._download_stream.remote else ""
        return f"shard {path} cannot be read{origin} ({type(error).__name__}: {error}); build or copy the data again"


class RowReader(MDSReader):
    """A shard of blocks as a shard of rows."""

    def __init__(self, shard: MDSReader, cut: RowCut, rows: int) -> None:
        vars(self).update(vars(shard))
        self.samples, self._cut = rows, cut

    def get_item(self, idx: int) -> dict[str, Any]:
        """Row `idx`, from its block."""
        block, number = divmod(idx, self._cut.per_block)
        return self._cut.row(super().get_item(block), number)


def decompressed_path(shard: Any) -> Path:
    """Path of the decompressed file of a shard."""
    return Path(shard.dirname, shard.split, shard.raw_data.basename)


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
