"""manifest.json: describes a folder of shards. The writer composes it; every reader checks it.

    format      version of this format
    task, version, parameters, seed, inputs, samples     the request; equal requests give equal shards
    tokenizer   kind (symbols | bytes | file), vocabulary (list of symbols), size, hash
    vocab, pad, query                           number of ids, id of padding, id of the query token or null
    length, windows                             tokens of a sample, and its windows [{start, stop, targets, problem}]; null and []
                                                for a token stream
    block       tokens of a block of a token stream (`stream.py`), whose rows are cut when they are read; null for samples
    columns     name of every column in the shards and its MDS encoding
    label       null or {name: name of the quantity in `groups`, values: its values}
    labels      description of every column `label_<name>`, by name
    baselines   accuracy of guessing, for each value in `groups`
    corpus      null, or counts of what was read: bytes, documents, and those that are repeated, empty, not UTF-8
    splits      for each split its samples or blocks, tokens (without padding), targets (scored positions), hash (of index.json);
                for a token stream also its documents, and lengths: how many of them have 1, 2..3, 4..7, ... tokens
    hash        sha256 of all of the above

Columns of a sample (those of a block are in `stream.py`):
    tokens      [length]; `pad` where there is no token
    targets     [length]: the token to be predicted from all tokens up to this position; -100 if the position is not scored.
                The loss is over all scored positions.
    groups      [length]: the value by which accuracy is broken down (t, hops; 0 if the task has a single group) where the
                target is part of an answer, else -1. A scored position with group -1 counts in the loss and not in the
                accuracy (Depo's answer marker). An answer is a run of consecutive positions with groups >= 0 within one
                window; it is exact if all its tokens are right.
    id          number of the sample in its split, from 0
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sleep_data.task import Task
from sleep_data.text import Text

FORMAT = 2
NAME = "manifest.json"


def columns(task: Task) -> dict[str, str]:
    """MDS encodings of the columns of samples, except those of the labels, whose shape the first block defines."""
    row = f"ndarray:int32:{task.windows()[-1].stop}"
    return {"tokens": row, "targets": row, "groups": row, "id": "int"}


def request(task: Task | Text, seed: int, samples: dict[str, int | None], inputs: str | None = None) -> dict[str, Any]:
    """Everything that determines the content of the shards, as JSON values; equal requests give equal folders.

    `inputs`: hash of the documents and the tokenizer; None for a generated task.
    """
    return {
        "task": task.name,
        "version": task.version,
        "parameters": task.parameters(),
        "seed": seed,
        "inputs": inputs,
        "samples": samples,
    }


def compose(
    task: Task | Text,
    requested: dict[str, Any],
    encodings: dict[str, str],
    splits: dict[str, Any],
    corpus: dict[str, int] | None = None,
) -> dict[str, Any]:
    """The manifest of a folder whose shards are written."""
    vocabulary = task.vocabulary()
    baselines = task.baselines()
    block = task.block if isinstance(task, Text) else None
    body = requested | {
        "format": FORMAT,
        "tokenizer": {
            "kind": vocabulary.kind,
            "vocabulary": list(vocabulary.symbols),
            "size": vocabulary.size,
            "hash": vocabulary.hash,
        },
        "vocab": vocabulary.size,
        "pad": vocabulary.pad,
        "query": vocabulary.query,
        "block": block,
        "length": None if block else task.windows()[-1].stop,
        "corpus": corpus,
        "windows": [asdict(window) for window in task.windows()],
        "columns": encodings,
        "label": {"name": task.label, "values": [int(value) for value in baselines]} if task.label else None,
        "labels": task.labels(),
        "baselines": baselines,
        "splits": splits,
    }
    return body | {"hash": digest(body)}


def digest(body: dict[str, Any]) -> str:
    """sha256 of a manifest without its own hash."""
    hashed = {key: value for key, value in body.items() if key != "hash"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write(folder: Path, body: dict[str, Any]) -> None:
    """Write manifest.json, after all shards: a folder that has a manifest is complete."""
    (folder / NAME).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The checked manifest of a folder. ValueError if it is missing, not JSON, of another format, or was changed."""
    path = folder / NAME
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of shards")
    if not path.is_file():
        raise ValueError(f"{folder} has no {NAME}: it is not a folder of shards, or its build was interrupted")
    return check(path.read_text(), str(path))


def existing(out: Path) -> dict[str, Any]:
    """The manifest of a folder that exists already; ValueError if it is empty or holds something else."""
    if out.is_dir() and not any(out.iterdir()):
        raise ValueError(f"{out} exists and is empty; remove it, or name another folder")
    return read(out)


def matching(out: Path, body: dict[str, Any], requested: dict[str, Any]) -> dict[str, Any]:
    """The manifest `body` of `out`; ValueError if it was built from another request."""
    differences = [
        difference for key, value in requested.items() for difference in _differences(key, body.get(key), value)
    ]
    if differences:
        raise ValueError(f"{out} holds other data ({'; '.join(differences)}); remove it, or name another folder")
    return body


def _differences(key: str, built: Any, requested: Any) -> Iterator[str]:
    """What differs between a value of a manifest and that of a request; mappings are compared key by key."""
    if isinstance(built, dict) and isinstance(requested, dict):
        for inner in [*requested, *(built.keys() - requested.keys())]:
            yield from _differences(inner, built.get(inner), requested.get(inner))
    elif built != requested and key == "inputs" and built and requested:
        yield "it was made from other documents, or with another tokenizer"  # values are hashes
    elif built != requested:
        yield f"{key} {json.dumps(built)} instead of {json.dumps(requested)}"


def check(text: str, source: str) -> dict[str, Any]:
    """The manifest in `text`, after a check of its format and hash. ValueError names `source`."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not valid JSON ({error}); build the data again") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        version = body.get("format") if isinstance(body, dict) else None
        raise ValueError(f"{source} has format {version!r}; this version reads format {FORMAT}; build the data again")
    if body.get("hash") != digest(body):
        raise ValueError(f"{source} was changed after it was written (its hash does not match); build the data again")
    return body
