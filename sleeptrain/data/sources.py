"""Manifests and indexes of the configured sources, checked before any shard is read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_data import manifest as manifests
from sleep_data.tokenize import TOKENIZER
from sleeptrain.data.budget import SourceSize
from sleeptrain.data.cache import ShardCache
from sleeptrain.data.config import Data, Source, is_remote
from sleeptrain.data.manifest import Manifest, merge
from sleeptrain.data.origin import Origin, reason
from sleeptrain.data.row_cut import RowCut
from sleeptrain.errors import UserError

INDEX = "index.json"


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
    cache: ShardCache | None
    """The cache that holds `folder`; None if the source is read in place."""
    name: str
    rows: int
    tokens: int
    """Real tokens of all rows."""
    cut: RowCut | None
    """How rows are cut from its blocks; None for samples."""
    shards: tuple[int, ...]
    """Bytes of every shard, compressed and decompressed."""
    shard_rows: tuple[int, ...]
    """Rows of every shard."""


@dataclass(frozen=True)
class Sources:
    """One split of all sources. Row numbers run through all sources in the order of the configuration."""

    manifest: Manifest
    split: str
    rows: int
    opened: tuple[OpenedSource, ...]

    @property
    def sizes(self) -> tuple[SourceSize, ...]:
        """Rows and real tokens of each source."""
        return tuple(SourceSize(source.rows, source.tokens) for source in self.opened)

    def check_cache(self, rows: int) -> None:
        """UserError if the cache may not hold the shards of a step of `rows` rows, each of which may be in another shard."""
        largest = sorted((size for source in self.opened for size in source.shards), reverse=True)[:rows]
        limit = None if self.opened[0].cache is None else self.opened[0].cache.limit
        if limit is not None and limit < sum(largest):
            raise UserError(
                f"data.cache_limit is {limit:,} bytes, and a step of {rows:,} rows on one rank reads up to {len(largest):,} shards, "
                f"which take {sum(largest):,} bytes while they are decompressed; raise it to that at least"
            )


def open_sources(data: Data, split: str, window: int | None = None) -> Sources:
    """Read and check manifests and indexes, but no shards. UserError names a file that is missing, damaged or foreign.

    `window`: tokens of the windows of a token stream, whose rows have `data.row` tokens.
    """
    cache = None if data.cache is None else ShardCache(Path(data.cache), data.cache_bytes)
    paths = [source.path for source in data.sources]
    bodies = [read_manifest(path) for path in paths]
    whole = [Manifest.from_json(body) for body in bodies]
    merge(whole, paths)  # what does not fit together is named before how its rows would be cut
    cut = [manifest.cut(window, data.row) for manifest in whole]
    manifest = merge(cut, paths)
    rows = manifest.samples(split)
    opened = []
    for source, one in zip(data.sources, cut, strict=True):
        folder = _in_place(source) if cache is None else _in_cache(source.path, cache, one, split)
        remote = None if cache is None else source.path
        count, tokens, shards, samples = 0, 0, (), ()
        if split in one.splits:
            count, tokens = one.samples(split), one.splits[split]["tokens"]
            content = _checked_index(source.path, folder / split / INDEX, one.splits[split]["hash"])
            listed = json.loads(content)["shards"]
            shards = tuple(
                sum(file["bytes"] for file in (shard["raw_data"], shard["zip_data"]) if file) for shard in listed
            )
            samples = tuple(shard["samples"] for shard in listed)
        rows_of = None if one.block is None else RowCut(one.block, one.length, count, one.pad)
        shard_rows = samples if rows_of is None else rows_of.by_shard(samples)
        opened.append(
            OpenedSource(str(folder), remote, cache, source.label, count, tokens, rows_of, shards, shard_rows)
        )
    return Sources(manifest, split, rows, tuple(opened))


def read_manifest(path: str) -> dict[str, Any]:
    """The checked manifest of a source, a folder or a URL. UserError if it is missing or damaged (`DataMissing` for a folder)."""
    if not is_remote(path):
        return _local_manifest(Path(path))
    content = _download(path, manifests.NAME)
    try:
        return manifests.check(content.decode(errors="replace"), Origin(path).url(manifests.NAME))
    except ValueError as error:
        raise UserError(str(error)) from None


def _local_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a local folder. DataMissing if it does not exist or is empty, UserError if it holds something else."""
    if not folder.exists():
        raise DataMissing(folder, "does not exist; build it")
    if folder.is_dir() and not any(folder.iterdir()):
        raise DataMissing(folder, "is empty; remove it, then build it")
    try:
        return manifests.read(folder)
    except ValueError as error:
        raise UserError(str(error)) from None


def tokenizer_file(data: Data, manifest: Manifest) -> Path:
    """Where the tokenizer of the first source is, if its data has one."""
    path = data.sources[0].path
    remote = is_remote(path) and data.cache is not None
    return (
        ShardCache(Path(data.cache or ""), None).folder_of(manifest.body["hash"]) if remote else Path(path)
    ) / TOKENIZER


def _in_place(source: Source) -> Path:
    """The folder of a source that is read where it is."""
    folder = Path(source.path)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder} is read-only, and shards are decompressed there; set data.cache to a writable folder"
        )
    return folder


def _in_cache(path: str, cache: ShardCache, manifest: Manifest, split: str) -> Path:
    """The folder of a source in the cache, with its index and its tokenizer."""
    folder = cache.folder_of(manifest.hash)
    index = folder / split / INDEX
    if split in manifest.splits and (
        not index.exists() or _sha256(index.read_bytes()) != manifest.splits[split]["hash"]
    ):
        _copy(path, f"{split}/{INDEX}", index)
    if is_remote(path) and manifest.tokenizer["kind"] == "file" and not (folder / TOKENIZER).exists():
        _copy(path, TOKENIZER, folder / TOKENIZER)
    return folder


def _checked_index(path: str, index: Path, expected: str) -> bytes:
    """The index of a split, whose hash is in the manifest."""
    try:
        content = index.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} has no readable index of its {index.parent.name} split ({error}); build the data again"
        ) from error
    if _sha256(content) != expected:
        raise UserError(
            f"the {index.name} of the {index.parent.name} split does not belong to the manifest of {path}: the data is being "
            "built or copied now, or its copy is damaged; wait, copy it or build it again"
        )
    return content


def _copy(path: str, name: str, target: Path) -> None:
    """Download one small file of a source, replacing `target` atomically."""
    content = _download(path, name)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"data.cache: {target} cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def _download(path: str, name: str) -> bytes:
    origin = Origin(path)
    try:
        return origin.read(name)
    except Exception as error:  # storage backends raise errors of any type
        raise UserError(f"{origin.url(name)} cannot be downloaded ({reason(error)})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
