"""What a task is: a vocabulary, a layout of windows, and a deterministic stream of samples for each split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "test")
IGNORED = -100
"""Target of a position that is not scored."""
NO_GROUP = -1
"""Group of a position that is not part of an answer."""
BLOCK = 1024
"""Samples drawn from one random stream; a sample depends on (seed, split, its block), never on how it was asked for."""

Arrays = dict[str, np.ndarray]
"""Rows of samples: tokens, targets, groups int32 [rows, length]; id int64 [rows]; label_<name> int32 [rows, ...]."""


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of every sample, read before the attention cache is cleared; `targets`: some are scored."""

    start: int
    stop: int
    targets: bool


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of a task. `symbols[i]` is what token i is shown as; empty for a tokenizer that comes as a file."""

    kind: str
    """symbols, bytes or file"""
    symbols: tuple[str, ...]
    size: int
    pad: int
    query: int | None = None
    source: str = ""
    """What decides the ids when `symbols` does not: the hash of the tokenizer file."""

    @property
    def hash(self) -> str:
        """sha256 over everything that decides what an id means."""
        meaning = [self.kind, list(self.symbols), self.size, self.pad, self.query, self.source]
        return hashlib.sha256(json.dumps(meaning, ensure_ascii=True).encode()).hexdigest()


class Task(Protocol):
    """A frozen dataclass of parameters that knows how to make samples. Wrong parameters raise ValueError on creation."""

    @property
    def name(self) -> str:
        """Name in the registry and in the manifest."""

    @property
    def version(self) -> int:
        """Raised whenever equal parameters and seed begin to give other samples."""

    @property
    def label(self) -> str | None:
        """What the values in `groups` are ("t", "k"), or None if answers are not divided."""

    def labels(self) -> dict[str, str]:
        """Name of every label column, without the prefix, and what it holds."""

    def parameters(self) -> dict[str, Any]:
        """The parameters as JSON values, defaults included."""

    def vocabulary(self) -> Vocabulary:
        """The token ids."""

    def windows(self) -> tuple[Window, ...]:
        """The windows of every sample, in order and without gaps."""

    def inputs(self) -> str | None:
        """Hash of what is read from outside (documents), None for a pure generator."""

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        """The first `samples` samples of a split (None: all there are), in pieces of any size, with ids 0, 1, 2, ..."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """For each value in `groups`, what guessing scores: see `baselines.py`."""


def generator(name: str, seed: int, split: str, block: int) -> np.random.Generator:
    """The random stream of one block of one split of one task."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng([salt, seed, SPLITS.index(split), block])


def cut(make_block: Any, start: int, stop: int) -> Arrays:
    """Rows [start, stop) out of `make_block(block) -> Arrays` with BLOCK rows each."""
    if not 0 <= start < stop:
        raise ValueError(f"rows {start} to {stop} were asked for; start must be at least 0 and below stop")
    pieces = []
    for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
        low, high = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
        pieces.append({name: column[low:high] for name, column in make_block(block).items()})
    rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return rows | {"id": np.arange(start, stop, dtype=np.int64)}


def in_blocks(generate: Any, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
    """`generate(split, start, stop, seed)` over [0, samples), a block at a time."""
    if samples is None:
        raise ValueError("a generated task has no end: say how many samples it should have")
    for start in range(0, samples, BLOCK):
        yield generate(split, start, min(start + BLOCK, samples), seed)


def require(wrong: bool, message: str) -> None:
    """Raise ValueError(message) if something is wrong."""
    if wrong:
        raise ValueError(message)
