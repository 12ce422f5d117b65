"""Rows by number out of MDS shards, local or remote: fetched, unpacked and verified when first needed.

Built on mosaicml-streaming's `Stream` (download with retries, decompression, checksum) and its shard readers. Its
`StreamingDataset` is not used: it coordinates the processes of a node through names in /dev/shm that outlive a killed run,
it must be told the ranks by environment variables, it cannot give the same rows to ranks that are not neighbours (a
pipeline's), and after an error in its background threads an epoch just ends early. Here a file lock, which the system
releases with its process, guards each shard while it is fetched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sleep_data import manifest as manifests

from sleeptrain.config import UserError
from sleeptrain.data.config import Data, Source, is_remote
from sleeptrain.data.manifest import Manifest, merge
from sleeptrain.data.order import Order, Part

Row = dict[str, Any]


class Store:
    """One split of all sources. Rows are numbered through the sources in the order of the configuration."""

    def __init__(self, data: Data, split: str) -> None:
        """Open the indexes; no shard is read. UserError names what is missing, foreign or unreadable."""
        self.paths = [source.path for source in data.sources]
        folders = [_folder(source, data.cache) for source in data.sources]
        bodies = [_manifest(source.path, folder) for source, folder in zip(data.sources, folders, strict=True)]
        self.manifest = merge([Manifest.from_json(body) for body in bodies], self.paths)
        self.rows = self.manifest.samples(split)
        self.remote = any(is_remote(path) for path in self.paths)
        self._shards: list[Any] = []
        self._streams: list[Any] = []
        self._ready: set[int] = set()
        self._sizes: list[tuple[int, ...]] = []
        for path, folder, body in zip(self.paths, folders, bodies, strict=True):
            stream, shards = _open(path, folder, split, body["splits"][split])
            self._sizes.append(tuple(len(shard) for shard in shards))
            self._shards += shards
            self._streams += [stream] * len(shards)
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def order(self, data: Data, seed: int) -> Order:
        """The order in which training reads these rows."""
        totals = [sum(sizes) for sizes in self._sizes]
        taken = _shares(totals, [source.proportion for source in data.sources])
        firsts = np.cumsum([0, *totals]).tolist()
        parts = [Part(sizes, first, rows) for sizes, first, rows in zip(self._sizes, firsts, taken, strict=False)]
        return Order([part for part in parts if part.rows], seed, data.shuffle)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of the given rows (numbers int64 [n]), stacked. UserError if a shard is damaged or missing."""
        samples = [self._row(int(row)) for row in rows]
        return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}

    def prepare(self, rows: np.ndarray) -> None:
        """Fetch and unpack the shards of these rows."""
        for shard in np.unique(np.searchsorted(self._ends, rows, side="right")).tolist():
            self._prepare(shard)

    def _row(self, row: int) -> Row:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        self._prepare(shard)
        reader = self._shards[shard]
        return reader[row - int(self._ends[shard]) + len(reader)]

    def _prepare(self, shard: int) -> None:
        if shard in self._ready:
            return
        from filelock import FileLock

        reader, stream = self._shards[shard], self._streams[shard]
        raw = Path(reader.dirname, reader.split, reader.raw_data.basename)
        if not _whole(raw, reader.raw_data.bytes):
            with FileLock(raw.with_name(f".{raw.name}.lock")):
                if not _whole(raw, reader.raw_data.bytes):  # nobody else did it while we waited
                    raw.unlink(missing_ok=True)
                    packed = raw.with_name(reader.zip_data.basename)
                    if stream.remote is None and not packed.exists():  # the library would look for it again and again
                        raise UserError(f"shard {packed} is missing; build or copy the data again")
                    try:
                        stream.prepare_shard(reader)
                    except Exception as error:  # whatever the storage raises, the user needs to know which shard
                        raise UserError(_damage(raw, stream.remote, error)) from error
        self._ready.add(shard)


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _damage(raw: Path, remote: str | None, error: Exception) -> str:
    if "Checksum" in str(error):
        return f"shard {raw} is damaged (its checksum does not fit); build or copy the data again"
    origin = f" from {remote}" if remote else ""
    return f"shard {raw} cannot be read{origin} ({type(error).__name__}: {error}); build or copy the data again"


def _folder(source: Source, cache: str | None) -> Path:
    """Where the unpacked shards of a source stand: the source itself, or its own folder in the cache."""
    if cache is not None:
        return Path(cache) / hashlib.sha256(source.path.encode()).hexdigest()[:16]
    folder = Path(source.path)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is read-only, and shards are unpacked beside themselves; set data.cache to a folder")
    return folder


def _manifest(path: str, folder: Path) -> dict[str, Any]:
    """The checked manifest of a source."""
    if not is_remote(path):
        return local_manifest(Path(path))
    target = folder / manifests.NAME
    _fetch(f"{path.rstrip('/')}/{manifests.NAME}", target)
    try:
        return manifests.read(folder)
    except ValueError as error:
        raise UserError(str(error)) from None


def local_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a local folder. UserError, with the command that builds it, if there is none."""
    build = f"make it with: sleeptrain data build {folder.name} --out {folder}"
    if not folder.exists():
        raise UserError(f"data folder {folder} does not exist; {build}  (or name another task)")
    if folder.is_dir() and not any(folder.iterdir()):
        raise UserError(f"data folder {folder} is empty; remove it, then {build}  (or name another task)")
    try:
        return manifests.read(folder)
    except ValueError as error:
        raise UserError(str(error)) from None


def _fetch(url: str, target: Path) -> None:
    """Download one small file anew, atomically."""
    from sleep_data.patches.torchvision import ensure_torchvision

    ensure_torchvision()
    from streaming.base.storage.download import CloudDownloader

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        CloudDownloader.direct_download(url, str(partial))
        os.replace(partial, target)
    except Exception as error:
        raise UserError(f"{url} cannot be fetched ({type(error).__name__}: {error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _open(path: str, folder: Path, split: str, entry: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The stream and shard readers of one split of one source, its index checked against the manifest."""
    from sleep_data.patches.torchvision import ensure_torchvision

    ensure_torchvision()
    from filelock import FileLock
    from streaming import Stream
    from streaming.base.world import World

    (folder / split).mkdir(parents=True, exist_ok=True)
    remote = None if str(folder) == path else path
    stream = Stream(
        remote=remote,
        local=str(folder),
        split=split,
        validate_hash="xxh64",
        keep_zip=remote is None,
        download_retry=2,
        download_timeout=300,
    )
    index = folder / split / "index.json"
    try:
        with FileLock(index.with_name(".index.lock")):
            # Every process is a leader of its own: the lock does what the library would ask of ranks.
            shards = stream.get_shards(World(1, 1, 1, 0), allow_unsafe_types=False)
    except Exception as error:
        raise UserError(f"{path} has no readable index of its {split} split ({error}); build the data again") from error
    if hashlib.sha256(index.read_bytes()).hexdigest() != entry["hash"]:
        stale = "; the cached copy may be old: remove it" if remote else ""
        raise UserError(f"{index} does not belong to the manifest of {path}{stale}, or build the data again")
    return stream, shards


def _shares(totals: Sequence[int], proportions: Sequence[float | None]) -> list[int]:
    """Rows that each source gives to an epoch of sum(totals) rows."""
    known = [value for value in proportions if value is not None]
    if len(known) < len(totals):
        return list(totals)
    edges = np.round(np.cumsum([0.0, *known]) / sum(known) * sum(totals)).astype(int)
    return np.diff(edges).tolist()
