"""The order in which one source is read, row by row or in runs of rows: an endless stream, whose every epoch has every row once."""

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

    def __init__(
        self, shards: Sequence[int], first: int, seed: Sequence[int], shuffle: bool, spread: int | None = None
    ) -> None:
        """`shards`: rows of every shard. `seed`: whole numbers."""
        self._sizes, self._first, self._spread = np.array(shards, np.int64), first, spread or SPREAD
        self._seed, self._shuffle = tuple(seed), shuffle
        self._rows = int(self._sizes.sum())
        self._offsets = self._sizes.cumsum() - self._sizes
        self._epoch = -1

    def row(self, position: int, offset: int = 0) -> int:
        """The number of the row at a position. Near positions are fast. `offset`: of rows in a run; here 0."""
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
        beyond = np.maximum(self._spread - sizes, 0) // 2
        ends = sizes.cumsum()
        self._low = np.maximum(ends - sizes - beyond, 0) * PLACES
        self._high = np.minimum(ends + beyond, self._rows) * PLACES

    def _places(self, shard: int) -> NDArray[np.int64]:
        """The places of the rows of a shard, by its position in the order of the shards."""
        number = int(self._shards[shard])
        generator = np.random.default_rng((*self._seed, self._epoch, number))
        return generator.integers(self._low[shard], self._high[shard], self._sizes[number])

    def _seek(self, index: int) -> None:
        """Make the part of the epoch that has the row at `index`: rows at the places of one spread, in the order of places."""
        part, size = index // self._spread, self._spread * PLACES
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


KEPT = 1 << 14
"""Runs that are kept by their positions: more than there are lanes."""


class RunOrder:
    """The runs of consecutive rows at positions 0, 1, ... of the stream of one source, which lanes read.

    A run has between half of `longest` rows and all of them, so that lanes do not begin runs in the same step; only the last one of the
    source may be shorter. Runs are the same in every epoch, and their order is that of a `SourceOrder` of runs.
    """

    def __init__(self, shards: Sequence[int], first: int, seed: Sequence[int], shuffle: bool, longest: int) -> None:
        """`shards`: rows of every shard. A run belongs to the shard of its first row."""
        offsets = np.array([0, *shards], np.int64).cumsum()
        rows, shortest = int(offsets[-1]), (longest + 1) // 2
        lengths = np.random.default_rng(seed).integers(shortest, longest + 1, -(-rows // shortest))
        stops = lengths.cumsum()
        self._starts = (stops - lengths)[: int(np.searchsorted(stops, rows)) + 1] if rows else np.empty(0, np.int64)
        self._stops = np.append(self._starts[1:], rows)
        by_shard = np.diff(np.searchsorted(self._starts, offsets))
        self._order = SourceOrder(by_shard.tolist(), 0, seed, shuffle, max(1, SPREAD // longest))
        self._first = first
        self._found: dict[int, int] = {}
        """Runs by their positions, those that were asked for last."""

    def __len__(self) -> int:
        """Runs of an epoch."""
        return len(self._starts)

    def rows(self, position: int) -> int:
        """The number of rows of the run at a position."""
        run = self._run(position)
        return int(self._stops[run] - self._starts[run])

    def row(self, position: int, offset: int = 0) -> int:
        """The number of row `offset` of the run at a position."""
        return self._first + int(self._starts[self._run(position)]) + offset

    def _run(self, position: int) -> int:
        """The run at a position. Lanes ask in turn for positions that may be in different epochs, which is slow to find."""
        if position not in self._found:
            self._found[position] = self._order.row(position)
            if len(self._found) > KEPT:
                del self._found[next(iter(self._found))]
        return self._found[position]
