"""MDS shards of a task, written to a staging folder beside the destination and renamed when complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data import manifest
from sleep_data.stream import targets_of
from sleep_data.task import IGNORED, SPLITS, Arrays, Task
from sleep_data.tokenize import TOKENIZER

SHARD_BYTES = 1 << 26
"""Bytes of a shard before compression."""

Progress = Callable[[str, int, int | None], None]
"""Called with the split, the number of samples written so far, and their total (None if it is not known yet)."""


def build(
    task: Task,
    out: Path,
    samples: dict[str, int | None],
    seed: int = 0,
    *,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write `<out>/<split>/` for every split and `<out>/manifest.json`; return the manifest.

    samples       number of samples of each split; None for all that the task has, 0 to omit the split
    shard_bytes   bytes of a shard before compression

    Equal task, seed and numbers of samples give equal bytes. A folder that was built from the same request is not written
    again. ValueError if the folder holds anything else, or if a split is empty.
    """
    request = manifest.request(task, seed, _check_samples(samples))
    if out.exists():
        return _read_existing(out, request)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".staging", dir=out.parent))
    try:
        encodings: dict[str, str] = {}
        splits = {}
        for split, count in samples.items():
            if count == 0:
                continue
            blocks = task.blocks(split, count, seed)
            splits[split], encodings = _write_split(task, staging / split, split, blocks, count, progress, shard_bytes)
        if content := task.vocabulary().content:
            (staging / TOKENIZER).write_bytes(content)
        body = manifest.compose(task, request, encodings, splits)
        manifest.write(staging, body)
        staging.chmod(0o755)  # mkdtemp creates folders that only their owner can read
        if not out.exists():  # another process may have built it meanwhile
            os.rename(staging, out)
        return _read_existing(out, request)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_samples(samples: dict[str, int | None]) -> dict[str, int | None]:
    for split, count in samples.items():
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not known; the splits are {' and '.join(SPLITS)}")
        if count is not None and count < 0:
            raise ValueError(f"{split} is {count}; the number of samples must not be negative")
    if all(count == 0 for count in samples.values()):
        raise ValueError("no samples are requested: train and test are both 0")
    return samples


def _read_existing(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that was built from `request`; ValueError if it holds other data."""
    if out.is_dir() and not any(out.iterdir()):
        raise ValueError(f"{out} exists and is empty; remove it, or name another folder")
    body = manifest.read(out)
    differences = [
        f"{key} {body.get(key)!r} instead of {value!r}" for key, value in request.items() if body.get(key) != value
    ]
    if differences:
        raise ValueError(f"{out} holds other data ({'; '.join(differences)}); remove it, or name another folder")
    return body


def _write_split(
    task: Task,
    folder: Path,
    split: str,
    blocks: Iterator[Arrays],
    count: int | None,
    progress: Progress | None,
    shard_bytes: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the shards of one split; return its entry in the manifest and the MDS encodings of its columns."""
    from sleep_data.patches.streaming_import import import_streaming

    import_streaming()
    from streaming import MDSWriter

    pad = task.vocabulary().pad
    written = tokens = targets = 0
    writer, encodings = None, manifest.columns(task)
    for block in blocks:
        if writer is None:
            encodings |= {name: _encoding(column) for name, column in block.items() if name.startswith("label_")}
            writer = MDSWriter(
                columns=encodings,
                out=str(folder),
                compression="zstd",
                hashes=["xxh64"],
                size_limit=shard_bytes,
                max_workers=1,
            )
        names = list(encodings)
        for values in zip(*(_values(block[name], encodings[name]) for name in names), strict=True):
            writer.write(dict(zip(names, values, strict=True)))
        written += len(block["id"])
        tokens += int((block["tokens"] != pad).sum())
        targets += _scored(block)
        if progress is not None:
            progress(split, written, count)
    if writer is None:
        raise ValueError(f"the {split} split of {task.name} is empty; ask for 0 {split} samples, or change the holdout")
    writer.finish()
    index_hash = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    return {"samples": written, "tokens": tokens, "targets": targets, "hash": index_hash}, encodings


def _scored(block: Arrays) -> int:
    """The number of scored positions of some samples, or of one block of a token stream."""
    if "targets" in block:
        return int((block["targets"] != IGNORED).sum())
    return int((targets_of(block["tokens"][0], block["starts"][0], int(block["next"][0])) != IGNORED).sum())


def _encoding(column: np.ndarray) -> str:
    """The MDS encoding of a label column."""
    return "int" if column.ndim == 1 else f"ndarray:{column.dtype}:{','.join(map(str, column.shape[1:]))}"


def _values(column: np.ndarray, encoding: str) -> list[Any]:
    """The values of a column by row, as the MDS encoding takes them."""
    if encoding == "bytes":
        return [row.astype("<i4").tobytes() for row in column]
    return column.tolist() if encoding == "int" else list(column)
