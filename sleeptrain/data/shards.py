"""The stream of mosaicml-streaming over one source, whose shards several processes and jobs can prepare at the same time.

It imports the library: import this module inside functions only.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sleep_data.patches.streaming_import import import_streaming

import_streaming()

from streaming import Stream  # noqa: E402
from streaming.base.compression import decompress  # noqa: E402
from streaming.base.format.mds.reader import MDSReader  # noqa: E402

from sleeptrain.data.cache import lock_of  # noqa: E402
from sleeptrain.data.origin import Origin, reason  # noqa: E402
from sleeptrain.data.row_cut import RowCut  # noqa: E402
from sleeptrain.data.sources import OpenedSource  # noqa: E402

_LOG = logging.getLogger("sleeptrain")
CHUNK = 1 << 20


class DamagedShard(Exception):
    """A file of a shard is not the one that the index describes; the message says what is wrong."""


class ShardStream(Stream):
    """The shards of one source, each downloaded, verified and decompressed by one process at a time.

    The dataset sees a local stream even if shards are downloaded: the library refuses two jobs that download to one folder,
    takes the leftovers of a killed job for a running one, and believes files that are there already.
    """

    def __init__(self, source: OpenedSource, split: str) -> None:
        super().__init__(local=source.folder, split=split)
        self._origin = None if source.remote is None else Origin(source.remote)
        self._cache, self._cut = source.cache, source.cut
        self._verified: set[Path] = set()
        self.failures: dict[Path, str] = {}
        """Error messages of the shards that this process could not prepare, by the path of the decompressed shard."""

    @property
    def cached(self) -> bool:
        """Whether the shards are in a cache, from which another process may remove them."""
        return self._cache is not None

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
        """Take no shard for present: each is verified before this process reads it, whoever made it."""
        cache_usage_per_shard[:] = 0

    def prepare_shard(self, shard: Any) -> int:
        """Make sure that the decompressed file of a shard is there and is the one of the index.

        Errors are recorded, not raised: other workers would wait forever. Returns 0, since the library keeps no cache here.
        """
        path = decompressed_path(shard)
        if not self._is_ready(path):
            with lock_of(path):
                if not self._is_ready(path):  # another thread may have prepared it meanwhile
                    self._prepare(shard, path)
        if self._cache is not None:
            self._cache.touch(path)
        return 0

    def _is_ready(self, path: Path) -> bool:
        """Whether nothing is left to do: a shard has failed, or is verified and no process has removed it from the cache."""
        return path in self.failures or (path in self._verified and path.exists())

    def read_failure(self, path: Path, error: Exception) -> str:
        """The error message for a shard whose samples cannot be read."""
        return f"shard {path} cannot be read ({type(error).__name__}: {error}); build or copy the data again"

    def _prepare(self, shard: Any, path: Path) -> None:
        """Verify the decompressed file, and make it again if it is missing or damaged; twice if it is downloaded."""
        try:
            damage = damage_of(path, shard.raw_data)
            if damage is not None:
                if path.exists():
                    _LOG.warning("shard %s %s; it is made again from %s", path, damage, self._source(shard, path))
                self._make_or_repeat(shard, path)
            self._verified.add(path)
        except Exception as error:  # storage backends raise errors of any type
            self.failures[path] = self._failure(shard, path, error)

    def _make_or_repeat(self, shard: Any, path: Path) -> None:
        try:
            self._make(shard, path)
        except Exception as error:
            if self._origin is None or _is_full(error):
                raise
            _LOG.warning("shard %s %s; it is downloaded again", self._source(shard, path), _reason(error))
            self._make(shard, path)

    def _make(self, shard: Any, path: Path) -> None:
        """Make the decompressed file of a shard from the file that `data build` wrote, downloaded if there is an origin."""
        written = shard.zip_data or shard.raw_data
        for leftover in path.parent.glob(f".{path.name}*.part*"):
            leftover.unlink(missing_ok=True)
        file = path.with_name(written.basename)
        if self._origin is not None and self._cache is not None:
            self._cache.make_room(shard.get_max_size())
            file = path.with_name(f".{written.basename}.part")
            self._origin.fetch(f"{self.split}/{written.basename}", file)
        _check(file, written)
        if shard.zip_data is not None:
            compressed, file = file, path.with_name(f".{path.name}.part")
            file.write_bytes(decompress(shard.compression, compressed.read_bytes()))
            _check(file, shard.raw_data)
            if self._origin is not None:
                compressed.unlink()
        os.replace(file, path)
        if self._cache is not None:
            self._cache.make_room(0)  # other processes have made room for theirs meanwhile

    def _source(self, shard: Any, path: Path) -> str:
        """The URL or path of the file that `data build` wrote."""
        name = (shard.zip_data or shard.raw_data).basename
        return str(path.with_name(name)) if self._origin is None else self._origin.url(f"{self.split}/{name}")

    def _failure(self, shard: Any, path: Path, error: Exception) -> str:
        """The error message for a shard that cannot be prepared."""
        if _is_full(error):
            return f"shard {path} cannot be written (the disk is full); free space, or bound the cache with data.cache_limit"
        tried, way_out = "", "build or copy the data again"
        if self._origin is not None:
            tried = ", downloaded twice"
            way_out = "restore it there; data that was built again under this URL needs a new start of the run"
        return f"shard {self._source(shard, path)} {_reason(error)}{tried}; {way_out}"


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


def damage_of(path: Path, expected: Any) -> str | None:
    """What is wrong with a file of a shard, given its entry in the index; None if size and xxh64 are right."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != expected.bytes:
        return f"is damaged (it has {size:,} bytes instead of {expected.bytes:,})"
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return None if digest.hexdigest() == expected.hashes["xxh64"] else "is damaged (its checksum does not match)"


def _check(path: Path, expected: Any) -> None:
    damage = damage_of(path, expected)
    if damage is not None:
        raise DamagedShard(damage)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return str(error) if isinstance(error, DamagedShard) else f"cannot be read ({reason(error)})"
