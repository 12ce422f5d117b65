"""Shards of the splits of a token stream, written by several processes; each is complete when its entry for the index exists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data.processes import run_all
from sleep_data.shards import Progress
from sleep_data.stream import Stream, encodings, to_shard
from sleep_data.token_files import TokenFiles

SLAB = 1 << 22
"""Tokens that are read from the token files at once: memory that is used again, where the kernel would map and clear new pages."""


def write_shards(
    arrays: Path,
    names: Iterable[str],
    length: int,
    target: Path,
    shard_bytes: int,
    processes: int,
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    """Write the shards and the index of every split to its folder in `target`, in blocks of `length` tokens; return their entries in
    the manifest.

    arrays        folder of `TokenFiles.save`
    shard_bytes   bytes of the tokens of a shard before compression
    """
    from sleep_data.patches.streaming_import import import_streaming

    import_streaming()  # here, so that forked processes have it
    splits = {name: TokenFiles.load(arrays, name) for name in names}
    calls: list[tuple[Any, ...]] = []
    blocks, counts, full = {}, {}, 0.0
    for name, (token_files, split) in splits.items():
        (target / name).mkdir(exist_ok=True)
        blocks[name] = -(-split.stream.tokens // length)
        of_shard = max(1, shard_bytes // (length * token_files.kind.itemsize))
        ranges = [range(first, min(first + of_shard, blocks[name])) for first in range(0, blocks[name], of_shard)]
        counts[name] = len(ranges)
        full += blocks[name] / of_shard
        calls += [
            (arrays, name, i, part, length, target / name)
            for i, part in enumerate(ranges)
            if not _entry(target / name, i).exists()
        ]
    total = sum(blocks.values())
    done = total - sum(len(call[3]) for call in calls)
    # The splits share the processes, so that none waits while others write the last shard of a split. What fits into one shard takes
    # less time than to start processes.
    for number in run_all(_write_shard, calls, processes if full > 1 else 1):
        done += len(calls[number][3])
        if progress is not None:
            progress("blocks written", done, total)
    return {
        name: {"samples": blocks[name], "hash": _write_index(target / name, counts[name])} | _counts(split.stream)
        for name, (_, split) in splits.items()
    }


def _write_index(folder: Path, shards: int) -> str:
    """Write the index of a split, whose shards are complete, in the place of their entries; returns its sha256."""
    entries = [json.loads(_entry(folder, i).read_text()) for i in range(shards)]
    index = json.dumps({"shards": entries, "version": 2}, sort_keys=True)
    (folder / "index.json").write_text(index)
    for i in range(shards):
        _entry(folder, i).unlink()
    return hashlib.sha256(index.encode()).hexdigest()


def _entry(folder: Path, number: int) -> Path:
    """The file with the entry of a shard for the index, which is written after the shard."""
    return folder / f".{number:05}.json"


def _write_shard(arrays: Path, name: str, number: int, blocks: range, length: int, folder: Path) -> None:
    """Write some blocks of a split as shard `number`, and its entry."""
    from streaming import MDSWriter

    token_files, split = TokenFiles.load(arrays, name)
    own = folder / f".{number:05}"
    shutil.rmtree(own, ignore_errors=True)
    writer = MDSWriter(
        columns=encodings(token_files.kind), out=str(own), compression="zstd", hashes=["xxh64"], size_limit=None, max_workers=1,
    )  # fmt: skip
    slab = max(1, SLAB // length)
    for first in range(blocks.start, blocks.stop, slab):
        part = range(first, min(first + slab, blocks.stop))
        start = part.start * length
        tokens = token_files.tokens(split, start, min(part.stop * length + 1, split.stream.tokens))
        for block in part:
            at = block * length - start
            writer.write(to_shard(split.stream.block(block, length, tokens[at : at + length + 1])))
    writer.finish()
    [entry] = json.loads((own / "index.json").read_text())["shards"]
    for data in ("raw_data", "zip_data"):
        entry[data]["basename"] = entry[data]["basename"].replace("shard.00000", f"shard.{number:05}")
    os.replace(own / "shard.00000.mds.zstd", folder / entry["zip_data"]["basename"])
    shutil.rmtree(own)
    partial = own.with_suffix(".partial")
    partial.write_text(json.dumps(entry, sort_keys=True))
    os.replace(partial, _entry(folder, number))


def _counts(stream: Stream) -> dict[str, Any]:
    """Counts of a split. `lengths` counts documents of 1, 2..3, 4..7, ... tokens."""
    lengths = np.bincount(np.log2(stream.lengths).astype(int)).tolist()
    return {"tokens": stream.tokens, "targets": stream.targets, "documents": len(stream.ends), "lengths": lengths}
