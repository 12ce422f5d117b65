"""The order in which the rows of one source are read: an endless stream, in which every epoch has every row once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPREAD = 1 << 18
"""Rows over which the rows of a shard are spread: about 200 shards of 4,096-token rows at 64 MiB a shard."""
PLACES = 1 << 20
"""Places for every row: few rows share one."""


class SourceOrder:
    """Numbers of the rows at positions 0, 1, ... of the stream of one source; numbers begin at `first`.

    Shuffled, an epoch has its shards in random order, and the rows of each shard are at random places of the SPREAD rows around
    it. So a reader needs a new shard at a steady rate, and the shards of about SPREAD rows at a time. The order depends on
    `seed`, the epoch and the sizes of the shards alone. Any place of it is found in time and memory for a few times SPREAD rows.
    """

    def __init__(self, shards: Sequence[int], first: int, seed: Sequence[int], shuffle: bool) -> None:
        """`shards`: rows of every shard. `seed`: whole numbers."""
        self._sizes, self._first = np.array(shards, np.int64), first
        self._seed, self._shuffle = tuple(seed), shuffle
        self._rows = int(self._sizes.sum())
        self._offsets = self._sizes.cumsum() - self._sizes
        self._epoch = -1

    def row(self, position: int) -> int:
        """The number of the row at a position. Near positions are fast."""
        epoch, index = divmod(position, self._rows)
        if not self._shuffle:
            return self._first + index
        if epoch != self._epoch:
            self._begin(epoch)
            self._seek(index)
        elif not self._start <= index < self._start + len(self._part):
            self._seek(index)
        return self._first + int(self._part[index - self._start])

    def _begin(self, epoch: int) -> None:
        """Draw the order of the shards, and the places [low, high) over which the rows of each are spread.

        Places are whole numbers, so that every row is in exactly one part of the epoch.
        """
        self._epoch = epoch
        self._shards = np.random.default_rng((*self._seed, epoch)).permutation(len(self._sizes))
        sizes = self._sizes[self._shards]
        beyond = np.maximum(SPREAD - sizes, 0) // 2
        ends = sizes.cumsum()
        self._low = np.maximum(ends - sizes - beyond, 0) * PLACES
        self._high = np.minimum(ends + beyond, self._rows) * PLACES

    def _places(self, shard: int) -> NDArray[np.int64]:
        """The places of the rows of a shard, by its position in the order of the shards."""
        number = int(self._shards[shard])
        generator = np.random.default_rng((*self._seed, self._epoch, number))
        return generator.integers(self._low[shard], self._high[shard], self._sizes[number])

    def _seek(self, index: int) -> None:
        """Make the part of the epoch that has the row at `index`: rows at the places of one SPREAD, in the order of places."""
        part, size = index // SPREAD, SPREAD * PLACES
        while (start := self._count_before(part * size)) > index:
            part -= 1
        while index >= start + len(rows := self._rows_between(part * size, (part + 1) * size)):
            start, part = start + len(rows), part + 1
        self._start, self._part = start, rows

    def _count_before(self, place: int) -> int:
        """The number of rows of the epoch at places below `place`."""
        whole = int(self._sizes[self._shards[self._high <= place]].sum())
        cut = ((self._low < place) & (self._high > place)).nonzero()[0]
        return whole + sum(int((self._places(shard) < place).sum()) for shard in cut)

    def _rows_between(self, low: int, high: int) -> NDArray[np.int64]:
        """The rows at places [low, high), in their order."""
        places, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard in ((self._low < high) & (self._high > low)).nonzero()[0]:
            all_places = self._places(shard)
            inside = ((all_places >= low) & (all_places < high)).nonzero()[0]
            places.append(all_places[inside])
            rows.append(self._offsets[self._shards[shard]] + inside)
        return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]
