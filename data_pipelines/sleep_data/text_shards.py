"""Shards of one split of a token stream, written by several processes; each is complete when its entry for the index exists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data.processes import run_all
from sleep_data.shards import Progress
from sleep_data.stream import Stream, encodings, to_shard
from sleep_data.token_files import TokenFiles


def write_shards(
    arrays: Path, name: str, length: int, folder: Path, shard_bytes: int, processes: int, progress: Progress | None
) -> dict[str, Any]:
    """Write the shards of split `name` and their index to `folder`, in blocks of `length` tokens; return its entry in the manifest.

    arrays        folder of `TokenFiles.save`
    shard_bytes   bytes of the tokens of a shard before compression
    """
    from sleep_data.patches.streaming_import import import_streaming

    import_streaming()  # here, so that forked processes have it
    folder.mkdir(exist_ok=True)
    token_files, split = TokenFiles.load(arrays, name)
    blocks = -(-split.stream.tokens // length)
    of_shard = max(1, shard_bytes // (length * token_files.kind.itemsize))
    ranges = [range(first, min(first + of_shard, blocks)) for first in range(0, blocks, of_shard)]
    left = [i for i in range(len(ranges)) if not _entry(folder, i).exists()]
    calls = [(arrays, name, i, ranges[i], length, folder) for i in left]
    done = blocks - sum(len(ranges[i]) for i in left)
    for number in run_all(_write_shard, calls, processes):
        done += len(ranges[left[number]])
        if progress is not None:
            progress(f"{name} blocks", done, blocks)
    entries = [json.loads(_entry(folder, i).read_text()) for i in range(len(ranges))]
    index = json.dumps({"shards": entries, "version": 2}, sort_keys=True)
    (folder / "index.json").write_text(index)
    for i in range(len(ranges)):
        _entry(folder, i).unlink()
    return {"samples": blocks, "hash": hashlib.sha256(index.encode()).hexdigest()} | _counts(split.stream)


def _entry(folder: Path, number: int) -> Path:
    """The file with the entry of a shard for the index, which is written after the shard."""
    return folder / f".{number:05}.json"


def _write_shard(arrays: Path, name: str, number: int, blocks: range, length: int, folder: Path) -> None:
    """Write some blocks of a split as shard `number`, and its entry."""
    from streaming import MDSWriter

    token_files, split = TokenFiles.load(arrays, name)
    start, stop = blocks.start * length, min(blocks.stop * length, split.stream.tokens)
    tokens = token_files.tokens(split, start, min(stop + 1, split.stream.tokens))
    own = folder / f".{number:05}"
    shutil.rmtree(own, ignore_errors=True)
    writer = MDSWriter(
        columns=encodings(token_files.kind), out=str(own), compression="zstd", hashes=["xxh64"], size_limit=None, max_workers=1,
    )  # fmt: skip
    for block in blocks:
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
