"""The content of a folder of shards as text: its manifest, and the first samples of each split."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import local_manifest

SHOWN = 128
"""Tokens of a row of text that are shown, at most."""


@dataclass(frozen=True)
class Inspection:
    """The manifest of a folder of shards, and some of its samples as text."""

    path: str
    manifest: Manifest
    samples: dict[str, list[str]]
    """First samples of each split, as `render` writes them."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"path": self.path, "manifest": self.manifest.body, "samples": self.samples}

    def text(self) -> str:
        """For the terminal."""
        manifest = self.manifest
        parameters = "  ".join(f"{name}={value}" for name, value in manifest.body["parameters"].items())
        windows = ", ".join(f"{w.start}-{w.stop - 1}{' (scored)' if w.targets else ''}" for w in manifest.windows)
        kind = manifest.tokenizer["kind"]
        unit = "samples" if manifest.block is None else f"blocks of {manifest.block:,} tokens"
        size = "" if manifest.block else f"{manifest.length} a sample, "
        lines = [
            f"{self.path}: {manifest.task}, seed {manifest.body['seed']}",
            f"  parameters  {parameters}",
            f"  tokens      {size}{manifest.vocab} ids ({kind}), padding {manifest.pad}",
        ]
        lines += [f"  windows     {windows}"] if manifest.block is None else []
        for split, entry in sorted(manifest.splits.items(), reverse=True):
            lines.append(
                f"  {split:<10}  {entry['samples']:,} {unit}, {entry['tokens']:,} tokens, {entry['targets']:,} scored"
            )
        for value, baseline in manifest.baselines.items():
            shown = "  ".join(f"{name} {score:.4g}" for name, score in baseline.items())
            lines.append(f"  baseline    {f'{manifest.label} = {value}: ' if manifest.label else ''}{shown}")
        for split, rows in self.samples.items():
            lines += [f"  {split} {i}: {row}" for i, row in enumerate(rows)]
        return "\n".join(lines)


def inspect(path: str | Path, samples: int = 2) -> Inspection:
    """Read the manifest and the first `samples` samples of each split of a local folder. UserError if it holds no shards."""
    manifest = Manifest.from_json(local_manifest(Path(path)))
    shown = None if manifest.block is None else max(n for n in range(1, SHOWN + 1) if manifest.block % n == 0)
    rendered: dict[str, list[str]] = {}
    for split in sorted(manifest.splits, reverse=True) if samples else ():
        rows = Evaluation(Data([Source(str(path))], row=shown), micro=1, split=split, samples=samples, window=shown)
        rendered[split] = [render(rows.manifest, row.tokens[0].numpy(), row.targets[0].numpy()) for row in rows]
    return Inspection(str(path), manifest, rendered)


def render(manifest: Manifest, tokens: np.ndarray, targets: np.ndarray) -> str:
    """One sample as text.

    Windows are separated by '|'. A scored position is written as `token>target`, except in data where every window is
    scored: there the target is the next token.
    """
    windows = []
    for window in manifest.windows:
        span = slice(window.start, window.stop)
        words = [symbol(manifest, int(token)) for token in tokens[span]]
        if not manifest.all_scored:
            answers = [f">{symbol(manifest, int(target))}" if target >= 0 else "" for target in targets[span]]
            words = [word + answer for word, answer in zip(words, answers, strict=True)]
        windows.append(_join(words, symbol(manifest, manifest.pad)))
    return " | ".join(windows)


def _join(words: list[str], pad: str) -> str:
    """Words separated by spaces; single characters are written without a space, a run of padding as `PAD*count`."""
    text = ""
    previous = ""
    for word, run in itertools.groupby(words):
        count = len(list(run))
        for piece in [f"{pad}*{count}"] if word == pad and count > 1 else [word] * count:
            text += (" " if text and not len(previous) == len(piece) == 1 else "") + piece
            previous = piece
    return text


def symbol(manifest: Manifest, token: int) -> str:
    """A token as text: its symbol, or `#id` where a tokenizer file decides."""
    symbols = manifest.tokenizer["vocabulary"]
    return symbols[token] if symbols else f"#{token}"
