"""Manifests for readers: that of one source, or the merged one of several sources."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.program import Window

WINDOWS = 8
"""Windows of a row of a token stream, unless `data.row` says otherwise."""


@dataclass(frozen=True)
class Manifest:
    """The fields of manifest.json that are used; `sleep_data.manifest` describes them."""

    task: str
    vocab: int
    pad: int
    query: int | None
    length: int
    """Tokens of every sample or row; 0 for a token stream that has not been cut."""
    windows: tuple[Window, ...]
    tokenizer: dict[str, Any]
    label: str | None
    """Name of the quantity in `groups`; None if the task has a single group."""
    label_values: tuple[int, ...]
    """Values of that quantity, if they are known."""
    labels: dict[str, str]
    baselines: dict[str, dict[str, float]]
    splits: dict[str, dict[str, Any]]
    hash: str
    body: dict[str, Any]
    """The whole manifest.json; for several sources, that of the first."""
    block: int | None = None
    """Tokens of a block of a token stream, from which rows are cut (`cut`); None for samples."""

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Manifest:
        """From the checked content of a manifest.json."""
        label = body["label"] or {"name": None, "values": []}
        return cls(
            task=body["task"],
            vocab=body["vocab"],
            pad=body["pad"],
            query=body["query"],
            block=body["block"],
            length=body["length"] or 0,
            windows=tuple(Window(w["start"], w["stop"], w["targets"]) for w in body["windows"]),
            tokenizer=body["tokenizer"],
            label=label["name"],
            label_values=tuple(label["values"]),
            labels=body["labels"],
            baselines=body["baselines"],
            splits=body["splits"],
            hash=body["hash"],
            body=body,
        )

    def cut(self, window: int | None, row: int | None) -> Manifest:
        """The manifest of rows of `row` tokens (None: eight windows) in windows of `window`; itself where it has samples.

        Raises UserError where windows do not divide a row, or rows a block.
        """
        if self.block is None:
            return self
        if window is None:
            raise ValueError("a token stream has no windows of its own; name the tokens of a window")
        length = row or WINDOWS * window
        if length % window or self.block % length:
            sizes = [n for n in range(window, min(self.block, 64 * window) + 1, window) if self.block % n == 0]
            way_out = f"possible are {', '.join(map(str, sizes))}" if sizes else "choose a window that divides a block"
            raise UserError(
                f"a row of {length} tokens (data.row{'' if row else f', {WINDOWS} windows by default'}) must hold whole windows of "
                f"{window} tokens (sleep.window) and divide the blocks of {self.block:,} tokens in the data; {way_out}"
            )
        windows = tuple(Window(start, start + window, True) for start in range(0, length, window))
        splits = {name: split | {"samples": math.ceil(split["tokens"] / length)} for name, split in self.splits.items()}
        return replace(self, length=length, windows=windows, splits=splits)

    def problem_windows(self, window: int) -> tuple[int, ...]:
        """The windows whose tokens are the problem that `window` asks about: those that the task names, else all."""
        entry = self.body["windows"][window] if self.body and self.block is None else {}
        return tuple(entry.get("problem") or range(len(self.windows)))

    @property
    def all_scored(self) -> bool:
        """Whether all windows are scored, as in plain text."""
        return all(window.targets for window in self.windows)

    def samples(self, split: str) -> int:
        """Number of samples of a split. UserError if there is no such split."""
        if split not in self.splits:
            raise UserError(f"the data has no split {split!r}; it has {', '.join(sorted(self.splits))}")
        return self.splits[split]["samples"]


def merge(manifests: Sequence[Manifest], paths: Sequence[str]) -> Manifest:
    """The manifest of several sources read together. UserError names two of them that differ in vocabulary or windows."""
    first = manifests[0]
    for other, path in zip(manifests[1:], paths[1:], strict=True):
        for name in ("tokenizer", "vocab", "pad", "query", "block", "length", "windows", "label"):
            expected, actual = getattr(first, name), getattr(other, name)
            if expected != actual:
                shown = (expected["hash"][:12], actual["hash"][:12]) if name == "tokenizer" else (expected, actual)
                way = "" if name == "label" else "build both with the same vocabulary and windows, or "
                raise UserError(
                    f"data.sources do not fit together: {name} is {shown[0]} in {paths[0]} and {shown[1]} in {path}; {way}read one of them"
                )
    if len(manifests) == 1:
        return first
    splits = {
        split: {
            count: sum(manifest.splits[split][count] for manifest in manifests if split in manifest.splits)
            for count in ("samples", "tokens", "targets")
        }
        for split in dict.fromkeys(split for manifest in manifests for split in manifest.splits)
    }
    baselines = first.baselines
    values = sorted({value for manifest in manifests for value in manifest.label_values})
    for manifest in manifests[1:]:  # a baseline that differs between sources is unknown for their mixture
        baselines = {key: table for key, table in baselines.items() if manifest.baselines.get(key) == table}
    tables = [manifest.labels for manifest in manifests]
    return Manifest(
        task="+".join(dict.fromkeys(manifest.task for manifest in manifests)),
        vocab=first.vocab,
        pad=first.pad,
        query=first.query,
        block=first.block,
        length=first.length,
        windows=first.windows,
        tokenizer=first.tokenizer,
        label=first.label,
        label_values=tuple(values),
        labels={name: text for name, text in first.labels.items() if all(name in table for table in tables)},
        baselines=baselines,
        splits=splits,
        hash=hashlib.sha256("".join(manifest.hash for manifest in manifests).encode()).hexdigest(),
        body=first.body,
    )
