"""The interface of a task: a vocabulary, a window layout, and a deterministic stream of samples for each split."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "test")
IGNORED = -100
"""Target of a position that is not part of the loss."""
NO_GROUP = -1
"""Group of a position that is not part of an answer."""
BLOCK = 1024
"""Samples of one block, which share a random stream.

A sample depends on seed, split and block alone, so that every range of samples that contains it gives the same values.
"""

Arrays = dict[str, np.ndarray]
"""Rows of samples: tokens, targets, groups int32 [rows, length]; id int64 [rows]; label_<name> int32 [rows, ...]."""


@dataclass(frozen=True)
class TaskWindow:
    """Tokens [start, stop) of every sample that share one attention cache; `targets` is true if some of them are scored."""

    start: int
    stop: int
    targets: bool
    problem: tuple[int, ...] | None = None
    """Numbers of the windows that hold what this one asks about; None: the whole sample. Samples with equal tokens there pose the
    same problem, and a confidence interval counts it once."""


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of a task. `symbols[i]` is the text of token i; empty for a tokenizer file, which has its own."""

    kind: str
    """symbols, bytes or file"""
    symbols: tuple[str, ...]
    size: int
    pad: int
    query: int | None = None
    source: str = ""
    """Hash of the tokenizer file; empty where `symbols` defines the ids."""
    content: bytes = field(default=b"", repr=False)
    """The tokenizer file, which is kept beside the shards."""

    @property
    def hash(self) -> str:
        """sha256 of everything that defines the meaning of an id."""
        meaning = [self.kind, list(self.symbols), self.size, self.pad, self.query, self.source]
        return hashlib.sha256(json.dumps(meaning, ensure_ascii=True).encode()).hexdigest()


class Task(Protocol):
    """A frozen dataclass of parameters that generates samples. Wrong parameters raise ValueError on creation."""

    @property
    def name(self) -> str:
        """Name in the registry and in the manifest."""

    @property
    def version(self) -> int:
        """Incremented when equal parameters and seed begin to give other samples, or another manifest of them."""

    @property
    def label(self) -> str | None:
        """Name of the quantity in `groups` ("t", "k"), or None if the task has a single group."""

    def labels(self) -> dict[str, str]:
        """Description of every label column, by its name without the prefix `label_`."""

    def parameters(self) -> dict[str, Any]:
        """All parameters as JSON values, including defaults."""

    def vocabulary(self) -> Vocabulary:
        """Token ids and their meaning."""

    def windows(self) -> tuple[TaskWindow, ...]:
        """Windows of every sample, in order and without gaps."""

    def inputs(self) -> str | None:
        """Hash of the files that are read; None if there is none."""

    def notes(self) -> list[str]:
        """What to tell the user about the inputs before they are read, such as files that are left out."""

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        """The first `samples` samples of a split (None: all of them), in blocks of any size, with ids 0, 1, 2, ..."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Accuracy of guessing, for each value in `groups`: see `baselines.py`."""


class GeneratedTask(ABC):
    """What tasks share that read no files and draw BLOCK samples at a time."""

    @abstractmethod
    def block(self, split: str, number: int, seed: int) -> Arrays:
        """The samples of one block of a split, without ids."""

    def inputs(self) -> str | None:
        """None: no files are read."""
        return None

    def notes(self) -> list[str]:
        """None."""
        return []

    def generate(self, split: str, start: int, stop: int, seed: int = 0) -> Arrays:
        """Samples [start, stop) of a split."""
        return rows_from_blocks(lambda number: self.block(split, number, seed), start, stop)

    def blocks(self, split: str, samples: int | None, seed: int) -> Iterator[Arrays]:
        """The first `samples` samples of a split, in blocks, with ids 0, 1, 2, ..."""
        return in_blocks(self.generate, split, samples, seed)


def generator(name: str, seed: int, split: str, block: int) -> np.random.Generator:
    """The random generator of one block of samples, or of one sample, of one split of one task."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng([salt, seed, SPLITS.index(split), block])


def rows_from_blocks(generate_block: Callable[[int], Arrays], start: int, stop: int) -> Arrays:
    """Rows [start, stop) of a split, from `generate_block(block)`, which returns BLOCK rows."""
    if not 0 <= start < stop:
        raise ValueError(f"rows {start} to {stop}: start must be at least 0 and less than stop")
    pieces = []
    for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
        low, high = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
        pieces.append({name: column[low:high] for name, column in generate_block(block).items()})
    rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return rows | {"id": np.arange(start, stop, dtype=np.int64)}


def in_blocks(
    generate: Callable[[str, int, int, int], Arrays], split: str, samples: int | None, seed: int, size: int = BLOCK
) -> Iterator[Arrays]:
    """Samples [0, samples) from `generate(split, start, stop, seed)`, `size` at a time."""
    if samples is None:
        raise ValueError(f"{split}=null: a generated task has no last sample; give their number, such as {split}=1000")
    for start in range(0, samples, size):
        yield generate(split, start, min(start + size, samples), seed)


def raise_if(wrong: bool, message: str) -> None:
    """Raise ValueError(message) if `wrong`."""
    if wrong:
        raise ValueError(message)
