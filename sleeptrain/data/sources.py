"""Manifests and indexes of the configured sources, checked before any shard is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_data import manifest as manifests
from sleeptrain.data.config import Data, Source, is_remote
from sleeptrain.data.manifest import Manifest, merge
from sleeptrain.data.row_cut import RowCut
from sleeptrain.errors import UserError


class DataMissing(UserError):
    """There is no data in a folder; who knows the tasks can add the command that builds it."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"data folder {folder} {what}")
        self.folder = folder


@dataclass(frozen=True)
class OpenedSource:
    """One split of one source, whose manifest and index have been checked."""

    folder: str
    """Folder of its index and decompressed shards."""
    remote: str | None
    """URL or folder to download missing shards from; None if the source is read in place."""
    name: str
    rows: int
    cut: RowCut | None
    """How rows are cut from its blocks; None for samples."""


@dataclass(frozen=True)
class Sources:
    """One split of all sources. Row numbers run through all sources in the order of the configuration."""

    manifest: Manifest
    split: str
    rows: int
    opened: tuple[OpenedSource, ...]


def open_sources(data: Data, split: str, window: int | None = None) -> Sources:
    """Read and check manifests and indexes, but no shards. UserError names a file that is missing, damaged or foreign.

    `window`: tokens of the windows of a token stream, whose rows have `data.row` tokens.
    """
    folders = [_folder(source, data.cache) for source in data.sources]
    bodies = [_manifest(source.path, folder) for source, folder in zip(data.sources, folders, strict=True)]
    whole, paths = [Manifest.from_json(body) for body in bodies], [source.path for source in data.sources]
    merge(whole, paths)  # what does not fit together is named before how its rows would be cut
    cut = [manifest.cut(window, data.row) for manifest in whole]
    manifest = merge(cut, paths)
    rows = manifest.samples(split)
    opened = []
    for source, folder, one in zip(data.sources, folders, cut, strict=True):
        remote = None if data.cache is None else source.path
        if split in one.splits:
            _check_index(source.path, remote is not None, folder / split / "index.json", one.splits[split]["hash"])
        count = one.samples(split) if split in one.splits else 0
        rows_of = None if one.block is None else RowCut(one.block, one.length, count, one.pad)
        opened.append(OpenedSource(str(folder), remote, source.label, count, rows_of))
    return Sources(manifest, split, rows, tuple(opened))


def local_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a local folder. DataMissing if it does not exist or is empty, UserError if it holds something else."""
    if not folder.exists():
        raise DataMissing(folder, "does not exist; build it")
    if folder.is_dir() and not any(folder.iterdir()):
        raise DataMissing(folder, "is empty; remove it, then build it")
    return _read_manifest(folder)


def _folder(source: Source, cache: str | None) -> Path:
    """Folder of the decompressed shards of a source: the source itself, or its own folder in the cache."""
    if cache is not None:
        return Path(cache) / hashlib.sha256(source.path.encode()).hexdigest()[:16]
    folder = Path(source.path)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} is read-only, and shards are decompressed there; set data.cache to a writable folder"
        )
    return folder


def _manifest(path: str, folder: Path) -> dict[str, Any]:
    """The checked manifest of a source."""
    if not is_remote(path):
        return local_manifest(Path(path))
    url = f"{path.rstrip('/')}/{manifests.NAME}"
    _download(url, folder / manifests.NAME, lambda reason: UserError(f"{url} cannot be downloaded ({reason})"))
    return _read_manifest(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return manifests.read(folder)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_index(path: str, cached: bool, index: Path, expected: str) -> None:
    """Compare the index of a split with its hash in the manifest; download it first if the cache lacks it."""
    split = index.parent.name

    def unreadable(reason: object) -> UserError:
        return UserError(f"{path} has no readable index of its {split} split ({reason}); build the data again")

    if cached and not index.exists():
        _download(f"{path.rstrip('/')}/{split}/{index.name}", index, unreadable)
    try:
        content = index.read_bytes()
    except OSError as error:
        raise unreadable(error) from error
    if hashlib.sha256(content).hexdigest() != expected:
        stale = "; remove the cached copy, which may be old" if cached else ""
        raise UserError(f"{index} does not belong to the manifest of {path}{stale}, or build the data again")


def _download(url: str, target: Path, failure: Callable[[str], UserError]) -> None:
    """Download one small file, replacing it atomically. `failure` makes the error from a reason."""
    from sleep_data.patches.streaming_import import import_streaming

    import_streaming()
    from streaming.base.storage.download import CloudDownloader

    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        CloudDownloader.direct_download(url, str(partial))
        os.replace(partial, target)
    except Exception as error:  # storage backends raise errors of any type
        raise failure(f"{type(error).__name__}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
