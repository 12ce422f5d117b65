"""The content of a folder of shards as text: its manifest, and the first samples of each split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sleep_data.tokenize import FileTokenizer
from sleeptrain.data.config import Data, Source, is_remote
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import read_manifest, tokenizer_file
from sleeptrain.errors import UserError

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

    def plot_lengths(self, path: Path) -> None:
        """Draw how many documents have which length. UserError if there are no documents."""
        if self.manifest.block is None:
            raise UserError(f"{self.path} holds samples of fixed length; --plot draws the lengths of documents of text")
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        for (split, entry), style in zip(sorted(self.manifest.splits.items(), reverse=True), ("-", "--"), strict=False):
            counts = entry["lengths"]
            first = next(k for k, count in enumerate(counts) if count)
            edges = [1 << k for k in range(first, len(counts) + 1)]
            axes.stairs(counts[first:], edges, label=split, ls=style, lw=2, baseline=0)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set(
            xlabel="tokens of a document, BOS included", ylabel="documents", title=f"{self.path}: lengths of documents"
        )
        axes.legend()
        figure.savefig(path, dpi=150)
        plt.close(figure)

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
        lines += [f"  corpus      {describe_corpus(manifest)}"] if manifest.body["corpus"] else []
        for split, entry in sorted(manifest.splits.items(), reverse=True):
            documents = f"{entry['documents']:,} documents, " if "documents" in entry else ""
            lines.append(
                f"  {split:<10}  {documents}{entry['samples']:,} {unit}, {entry['tokens']:,} tokens, {entry['targets']:,} scored"
            )
        for value, baseline in manifest.baselines.items():
            shown = "  ".join(f"{name} {score:.4g}" for name, score in baseline.items())
            lines.append(f"  baseline    {f'{manifest.label} = {value}: ' if manifest.label else ''}{shown}")
        for split, rows in self.samples.items():
            lines += [f"  {split} {i}: {row}" for i, row in enumerate(rows)]
        return "\n".join(lines)


def inspect(path: str | Path, samples: int = 2) -> Inspection:
    """Read the manifest and the first `samples` samples of each split of a folder or a URL. UserError if it holds no shards.

    Shards of a URL are downloaded into a temporary folder: the first ones of each split, as many as hold these samples.
    """
    path = str(path)
    manifest = Manifest.from_json(read_manifest(path))
    shown = None if manifest.block is None else max(n for n in range(1, SHOWN + 1) if manifest.block % n == 0)
    with TemporaryDirectory() if is_remote(path) else nullcontext() as cache:
        data = Data([Source(path)], row=shown, cache=cache)
        opened = {
            split: Evaluation(data, micro=1, split=split, samples=samples, window=shown)
            for split in sorted(manifest.splits, reverse=True)
            if samples
        }
        symbols = _symbols(manifest, tokenizer_file(data, manifest))
        rendered = {
            split: [render(rows.manifest, row.tokens[0].numpy(), row.targets[0].numpy(), symbols) for row in rows]
            for split, rows in opened.items()
        }
    return Inspection(path, manifest, rendered)


def describe_corpus(manifest: Manifest) -> str:
    """What was read for a token stream, in words."""
    corpus = manifest.body["corpus"]
    counts = [f"{corpus[name]:,} {name}" for name in ("repeated", "empty", "not UTF-8") if corpus[name]]
    left_out = f" ({', '.join(counts)})" if counts else ""
    return f"{corpus['documents']:,} documents{left_out} of {corpus['bytes']:,} bytes"


def render(manifest: Manifest, tokens: np.ndarray, targets: np.ndarray, symbols: Callable[[int], str]) -> str:
    """One sample as text.

    Windows are separated by '|'. A scored position is written as `token>target`. In data where every window is scored the target is
    the next token; there tokens of prompts, which no target predicts, are in brackets.
    """
    windows = []
    for window in manifest.windows:
        span = slice(window.start, window.stop)
        words = [symbols(int(token)) for token in tokens[span]]
        if not manifest.all_scored:
            answers = [f">{symbols(int(target))}" if target >= 0 else "" for target in targets[span]]
            words = [word + answer for word, answer in zip(words, answers, strict=True)]
        elif manifest.block is not None:
            words = _bracketed(words, tokens[span], np.append(0, targets[:-1])[span] < 0, manifest)
        windows.append(_join(words, symbols(manifest.pad)))
    return " | ".join(windows)


def _bracketed(words: list[str], tokens: np.ndarray, unpredicted: np.ndarray, manifest: Manifest) -> list[str]:
    """The words, with "[" and "]" around runs of tokens that no target predicts; BOS and padding are no prompts."""
    prompt = unpredicted & (tokens < manifest.pad - 1)
    before, after = np.append(False, prompt[:-1]), np.append(prompt[1:], False)
    opening, closing = prompt & ~before, prompt & ~after
    return [f"{'[' * opening[i]}{word}{']' * closing[i]}" for i, word in enumerate(words)]


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


def _symbols(manifest: Manifest, tokenizer: Path) -> Callable[[int], str]:
    """The text of a token: its symbol; what a tokenizer file decodes it to, as in Python; or `#id`."""
    symbols: list[str] = manifest.tokenizer["vocabulary"]
    if symbols:
        return symbols.__getitem__
    special = {manifest.pad: "PAD", manifest.pad - 1: "BOS"} if manifest.block is not None else {}
    if not tokenizer.is_file():
        return lambda token: special.get(token, f"#{token}")
    opened = FileTokenizer(str(tokenizer))
    return lambda token: special.get(token) or repr(opened.decode([token]))[1:-1].replace(" ", "_") or f"#{token}"
