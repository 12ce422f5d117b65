"""manifest.json: what a folder of shards holds. Composed by the writer, checked by every reader.

    format      number of this layout
    task, version, parameters, seed, inputs     what the samples were made from; equal values give equal shards
    tokenizer   kind (symbols | bytes | file), vocabulary (list of symbols), size, hash
    vocab, pad, query                           number of ids, id of padding, id of the query token or null
    length, windows                             tokens of a sample, and its windows [{start, stop, targets}]
    columns     name of every column in the shards and its MDS encoding
    label       null or {name: what the values in `groups` are, values: those that occur in an answer, if known}
    labels      name of every `label_<name>` column and what it holds
    baselines   for each value in `groups` what guessing scores
    splits      for each split samples, tokens (without padding), targets (scored positions), hash (of the shard index)
    hash        sha256 of all the above

Columns of a sample. `tokens` [length]; `targets` [length]: the token to be predicted from the positions up to here, -100
where nothing is scored (the loss is over all others); `groups` [length]: -1 where a position is no part of an answer, else
the value by which accuracy is divided (t, hops; 0 if the task divides nothing). A scored position with group -1 counts in
the loss and not in the accuracy (Depo's answer marker). An answer is a run of consecutive positions with groups >= 0 within
one window; it is exact if all its tokens are right. `id` counts the samples of a split from 0. Padding: tokens == pad.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sleep_data.task import Task

FORMAT = 1
NAME = "manifest.json"


def columns(task: Task) -> dict[str, str]:
    """MDS encoding of every column but the labels, whose shape is known with the first sample."""
    row = f"ndarray:int32:{task.windows()[-1].stop}"
    return {"tokens": row, "targets": row, "groups": row, "id": "int"}


def request(task: Task, seed: int, samples: dict[str, int | None]) -> dict[str, Any]:
    """What decides the content of the shards, as JSON values; two folders with equal requests are equal."""
    return {
        "task": task.name,
        "version": task.version,
        "parameters": task.parameters(),
        "seed": seed,
        "inputs": task.inputs(),
        "samples": samples,
    }


def compose(task: Task, wanted: dict[str, Any], encodings: dict[str, str], splits: dict[str, Any]) -> dict[str, Any]:
    """The whole manifest of a written folder."""
    vocabulary = task.vocabulary()
    scores = task.baselines()
    body = wanted | {
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
        "length": task.windows()[-1].stop,
        "windows": [asdict(window) for window in task.windows()],
        "columns": encodings,
        "label": {"name": task.label, "values": [int(value) for value in scores]} if task.label else None,
        "labels": task.labels(),
        "baselines": scores,
        "splits": splits,
    }
    return body | {"hash": digest(body)}


def digest(body: dict[str, Any]) -> str:
    """sha256 of a manifest without its own hash."""
    rest = {key: value for key, value in body.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write(folder: Path, body: dict[str, Any]) -> None:
    """Write manifest.json; it comes last, so that a folder with a manifest is complete."""
    (folder / NAME).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder, checked. ValueError if it is missing, no JSON, of another format, or was changed."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {NAME}: it is no folder of shards, or was not written to the end")
    return check(path.read_text(), str(path))


def check(text: str, source: str) -> dict[str, Any]:
    """Parse the text of a manifest and check its format and hash; `source` is named in errors."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not valid JSON ({error}); build the data again") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else None
        raise ValueError(f"{source} has format {found!r}, and this version reads format {FORMAT}; build the data again")
    if body.get("hash") != digest(body):
        raise ValueError(f"{source} was changed after it was written (its hash does not fit); build the data again")
    return body
