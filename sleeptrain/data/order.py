"""Which row stands at which position of which epoch: a pure function of the seed, computed piece by piece.

The order of an epoch knows nothing of ranks, workers or restarts; these take slices of it. It is never stored whole: the
shards are laid out in a random order, the result is cut into blocks of BLOCK rows, and the rows of each block are permuted.
So any position is found in the time of one block, neighbours come from few shards, and a data set up to one block is
shuffled perfectly. (mosaicml-streaming's own order depends on the number of ranks and workers at the end of an epoch, where
it repeats or drops samples to fill them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 1 << 18
"""Rows that are mixed with each other: about 200 shards of 4,096-token samples at 64 MiB a shard."""


@dataclass(frozen=True)
class Part:
    """One source: the sizes of its shards, its first row in the numbering of all sources, its share of an epoch."""

    shards: tuple[int, ...]
    first: int
    rows: int
    """Rows taken in each epoch; epochs go on through the source where the last one stopped."""


class Order:
    """The order of all epochs; remembers only the pieces that were used last."""

    def __init__(self, parts: Sequence[Part], seed: int, shuffle: bool, block: int = BLOCK) -> None:
        self.parts = tuple(parts)
        self.seed = seed
        self.shuffle = shuffle
        self.block = block
        self.length = sum(part.rows for part in self.parts)
        """Rows of an epoch."""
        self._layout = lru_cache(maxsize=2)(self._lay_out)
        self._block = lru_cache(maxsize=2)(self._permute)

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Row numbers int64 [stop - start] at positions [start, stop) of an epoch."""
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"positions {start} to {stop} are not within an epoch of {self.length} rows")
        pieces = [np.empty(0, np.int64)]
        for block in range(start // self.block, -(-stop // self.block)):
            first = block * self.block
            pieces.append(self._block(epoch, block)[max(start - first, 0) : stop - first])
        return np.concatenate(pieces)

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The first rows of the spans that make up an epoch, in order, and the positions between which they stand."""
        spans = np.array([span for part in self.parts for span in _spans(part, epoch)], np.int64)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch, 0]).shuffle(spans)
        edges = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])])
        return spans[:, 0], edges

    def _permute(self, epoch: int, block: int) -> np.ndarray:
        """The rows of one block, in their final order."""
        firsts, edges = self._layout(epoch)
        low, high = block * self.block, min((block + 1) * self.block, self.length)
        pieces = []
        for i in range(int(np.searchsorted(edges, low, side="right")) - 1, int(np.searchsorted(edges, high))):
            begin, end = max(low, int(edges[i])), min(high, int(edges[i + 1]))
            pieces.append(firsts[i] - edges[i] + np.arange(begin, end))
        rows = np.concatenate(pieces)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch, 1 + block]).shuffle(rows)
        return rows


def _spans(part: Part, epoch: int) -> list[tuple[int, int]]:
    """The rows of one source in one epoch, as spans within shards; the source is read round and round."""
    size = sum(part.shards)
    edges = np.cumsum((0, *part.shards))
    spans = []
    position, end = epoch * part.rows, (epoch + 1) * part.rows
    while position < end:
        row = position % size
        edge = int(edges[np.searchsorted(edges, row, side="right")])
        stop = min(edge, row + end - position)
        spans.append((part.first + row, part.first + stop))
        position += stop - row
    return spans
