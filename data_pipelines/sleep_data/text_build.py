"""Builds the shards of text: processes tokenize parts of the corpus, then write shards of the stream that all parts make.

Every part and every shard is complete when its file has its name, so that a killed build continues with what it has. The bytes of
the shards depend on the documents and the parameters alone, not on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from sleep_data import files, manifest
from sleep_data.pieces import Span
from sleep_data.processes import run_all
from sleep_data.shards import SHARD_BYTES, Progress, checked_samples
from sleep_data.staging import publish, staging
from sleep_data.stream import Stream, encodings, token_type
from sleep_data.text import Split, Text, divide, first_of_equal
from sleep_data.text_shards import write_shards
from sleep_data.token_files import TokenFiles
from sleep_data.tokenize import TOKENIZER
from sleep_data.tokenized import Table, parts_of, tokenize_part

FILES = "inputs"
"""File of a built folder: a hash of names, sizes and times of the files that were read, by which another build knows them."""


def build(
    task: Text,
    out: Path,
    samples: dict[str, int | None],
    seed: int = 0,
    *,
    processes: int = 1,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write `<out>/<split>/` for every split and `<out>/manifest.json`; return the manifest.

    samples     number of documents of each split; None for all, 0 to omit the split

    A folder that was built from the same documents and parameters is not written again. ValueError if the folder holds anything
    else, a split is empty, or a document cannot be read; then what is done is kept, and the next build continues with it.
    """
    checked_samples(samples)
    parts = parts_of(files.find(task.paths))
    names = [_name(part, task) for part in parts]
    state = hashlib.sha256("".join(names).encode()).hexdigest()
    if out.exists():
        body = manifest.existing(out)
        if _content(out / FILES) == state:
            return manifest.matching(out, body, manifest.request(task, seed, samples, body["inputs"]))
    with staging(out, keep=True) as folder:
        tables = _tokenize(task, parts, names, folder, processes, progress)
        digests = np.concatenate([np.empty((0, 2), np.uint64), *(table.digests for table in tables)])
        inputs = hashlib.sha256(task.vocabulary().hash.encode() + digests.tobytes()).hexdigest()
        request = manifest.request(task, seed, samples, inputs)
        if out.exists():  # the files were touched, or another process has built it meanwhile
            body = manifest.matching(out, manifest.existing(out), request)
            (out / FILES).write_text(state)
            return body
        if not len(digests):
            raise ValueError(f"there is no text in the files under {', '.join(task.paths)}")
        tokens, prompts = (np.concatenate([getattr(table, name) for table in tables]) for name in ("tokens", "prompts"))
        kept = first_of_equal(digests)
        splits = _limited(divide(kept, digests, tokens, prompts, task.holdout), samples)
        key = hashlib.sha256(json.dumps([request, shard_bytes], sort_keys=True).encode()).hexdigest()[:24]
        target = _emptied(folder, keep=f"shards-{key}")
        arrays = folder / "documents"
        arrays.mkdir()
        _token_files(task, tables, names, folder).save(arrays, splits)
        described = write_shards(arrays, splits, task.block, target, shard_bytes, processes, progress)
        body = manifest.compose(
            task,
            request,
            encodings(token_type(task.vocabulary().size)),
            described,
            _corpus(tables, len(digests), len(kept)),
        )
        if content := task.vocabulary().content:
            (target / TOKENIZER).write_bytes(content)
        (target / FILES).write_text(state)
        manifest.write(target, body)
        publish(target, out)
        return manifest.existing(out)


def _name(part: list[Span], task: Text) -> str:
    """A name of a part that changes with what is read and how."""
    stats = [os.stat(span.path) for span in part]
    read = [(*astuple(span), stat.st_size, stat.st_mtime_ns) for span, stat in zip(part, stats, strict=True)]
    described = [read, task.vocabulary().hash, *astuple(task.fields)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _content(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _tokenize(
    task: Text, parts: list[list[Span]], names: list[str], folder: Path, processes: int, progress: Progress | None
) -> list[Table]:
    """The tables of all parts, of which those are tokenized that are not done yet."""
    keep = {f"{name}{suffix}" for name in names for suffix in (".tokens", ".npz")}
    for path in folder.iterdir():
        if path.is_file() and path.name not in keep:
            path.unlink()
    megabytes = [sum(span.size for span in part) / 1e6 for part in parts]
    left = [i for i, name in enumerate(names) if not (folder / f"{name}.npz").exists()]
    done = sum(megabytes) - sum(megabytes[i] for i in left)
    calls = [(parts[i], task.open_tokenizer, task.fields, folder / names[i]) for i in left]
    for number in run_all(tokenize_part, calls, processes):
        done += megabytes[left[number]]
        if progress is not None:
            progress("MB read", round(done), round(sum(megabytes)))
    return [Table.load(folder / f"{name}.npz") for name in names]


def _limited(splits: dict[str, Split], samples: dict[str, int | None]) -> dict[str, Split]:
    """The first documents of each split that is not omitted."""
    chosen = {}
    for name, count in samples.items():
        if count == 0:
            continue
        split = splits[name]
        stream = Stream(split.stream.ends[:count], split.stream.prompts[:count])
        chosen[name] = Split(split.document[:count], split.offset[:count], stream)
        if not stream.tokens:
            raise ValueError(f"the {name} split of text is empty; ask for 0 {name} samples, or change the holdout")
    return chosen


def _token_files(task: Text, tables: list[Table], names: list[str], folder: Path) -> TokenFiles:
    first = np.cumsum([0] + [len(table.tokens) for table in tables])
    starts = np.concatenate([table.tokens.cumsum() - table.tokens for table in tables])
    paths = tuple(str(folder / f"{name}.tokens") for name in names)
    vocabulary = task.vocabulary()
    return TokenFiles(paths, first, starts, vocabulary.size - 2, token_type(vocabulary.size))


def _emptied(folder: Path, keep: str) -> Path:
    """The folder `keep` in `folder`; all other folders there are removed."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != keep:
            shutil.rmtree(path)
    (folder / keep).mkdir(exist_ok=True)
    return folder / keep


def _corpus(tables: list[Table], documents: int, kept: int) -> dict[str, int]:
    """What was read: bytes, documents, and those of them that repeat one, are empty, or have bytes that are not UTF-8."""
    read, empty, invalid = (int(sum(table.counts[i] for table in tables)) for i in range(3))
    counts = {"repeated": documents - kept, "empty": empty, "not UTF-8": invalid}
    return {"bytes": read, "documents": documents + empty} | counts
