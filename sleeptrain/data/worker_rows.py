"""The rows that one worker process of a rank reads, found step by step as they are asked for."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from sleeptrain.data.draws import Drawn, Draws
from sleeptrain.data.lane_draws import LaneDraws
from sleeptrain.data.order import RunOrder, SourceOrder

PASSED = -1
"""Stands for a row that was read long ago; the library skips it."""


@dataclass(frozen=True)
class RankRows:
    """How a rank reads steps: from which row on, and which of their rows."""

    draws: Draws | LaneDraws
    """As they stand before the first step that is read."""
    orders: Sequence[SourceOrder] | Sequence[RunOrder]
    """Of every source."""
    micro: int
    accumulation: int
    rank: int
    world: int


class WorkerRows(Sequence[int]):
    """An endless sequence of row numbers, which threads read at near places: what the library takes for the order of an epoch.

    Row i of a global batch is one of rank i % world, which fills its micro-batches in order. Micro-batches go to the workers of
    a rank in turn.
    """

    def __init__(self, read: RankRows, worker: int, workers: int, kept: int) -> None:
        """For worker `worker` of `workers`. The newest `kept` micro-batches are kept for threads that are behind."""
        self._read, self._worker, self._workers = read, worker, workers
        self._drawn: list[Drawn] = []
        """Rows of the rank in the newest step."""
        self._rank_batches = 0
        """Micro-batches of the rank in all steps so far."""
        self._batches: deque[list[int]] = deque(maxlen=kept)
        self._made = 0
        """Micro-batches of this worker so far."""
        self._lock = Lock()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # the library takes no slices
        number, row = divmod(index, self._read.micro)
        with self._lock:
            while number >= self._made:
                self._make()
            behind = self._made - 1 - number
            return PASSED if behind >= len(self._batches) else self._batches[-1 - behind][row]

    def _make(self) -> None:
        """Draw steps until there is another micro-batch of this worker."""
        read, number = self._read, self._worker + self._made * self._workers
        while number >= self._rank_batches:
            self._drawn = read.draws.next_step()[read.rank :: read.world]
            self._rank_batches += read.accumulation
        first = (number % read.accumulation) * read.micro
        rows = self._drawn[first : first + read.micro]
        self._batches.append([read.orders[source].row(position, offset) for source, position, offset in rows])
        self._made += 1
