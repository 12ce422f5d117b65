"""MDS shards of a task, written to a staging folder beside the destination and renamed when complete."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data import manifest
from sleep_data.staging import publish, staging
from sleep_data.task import IGNORED, SPLITS, Arrays, Task
from sleep_data.task_check import check_block, check_task
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
    again. ValueError if the folder holds anything else, if a split is empty, or if the task or its samples break the interface.
    """
    check_task(task)
    request = manifest.request(task, seed, checked_samples(samples), task.inputs())
    if out.exists():
        return manifest.matching(out, manifest.existing(out), request)
    with staging(out, keep=False) as folder:
        if out.exists():  # another process has built it meanwhile
            return manifest.matching(out, manifest.existing(out), request)
        target = folder / "shards"
        encodings: dict[str, str] = {}
        splits = {}
        for split, count in samples.items():
            if count == 0:
                continue
            blocks = task.blocks(split, count, seed)
            splits[split], encodings = _write_split(task, target / split, split, blocks, count, progress, shard_bytes)
        if content := task.vocabulary().content:
            (target / TOKENIZER).write_bytes(content)
        manifest.write(target, manifest.compose(task, request, encodings, splits))
        publish(target, out)
        return manifest.existing(out)


def checked_samples(samples: dict[str, int | None]) -> dict[str, int | None]:
    """The numbers of samples; ValueError if a split is not known, a number negative, or all are 0."""
    for split, count in samples.items():
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not known; the splits are {' and '.join(SPLITS)}")
        if count is not None and count < 0:
            raise ValueError(f"{split} is {count}; the number of samples must not be negative")
    if all(count == 0 for count in samples.values()):
        raise ValueError("no samples are requested: train and test are both 0")
    return samples


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
        check_block(task, split, block)
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
        columns = (block[name].tolist() if encodings[name] == "int" else block[name] for name in names)
        for values in zip(*columns, strict=True):
            writer.write(dict(zip(names, values, strict=True)))
        written += len(block["id"])
        tokens += int((block["tokens"] != pad).sum())
        targets += int((block["targets"] != IGNORED).sum())
        if progress is not None:
            progress(split, written, count)
    if writer is None:
        raise ValueError(f"the {split} split of {task.name} is empty; ask for 0 {split} samples, or change the holdout")
    writer.finish()
    index_hash = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    return {"samples": written, "tokens": tokens, "targets": targets, "hash": index_hash}, encodings


def _encoding(column: np.ndarray) -> str:
    """The MDS encoding of a label column."""
    return "int" if column.ndim == 1 else f"ndarray:{column.dtype}:{','.join(map(str, column.shape[1:]))}"
