"""How long every rank works in a step, beside the others: finds the rank that the others wait for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist


class RankTimes:
    """Seconds that this rank works in the steps since the last report: reading its batches, and the forward half of its steps.

    Under data parallelism neither waits for another rank, which the whole step does, so that all ranks have equal times of steps. In a
    pipeline and under tensor parallelism the forward half waits for the ranks of the same replica: then replicas are compared.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, every: int = 1, device: torch.device | None = None
    ) -> None:  # fmt: skip
        """`every`: steps between reports, `log.every`. `device`: that of the forward half; None: the CPU."""
        self._rank, self._world, self._every, self._device = rank, world, every, device or torch.device("cpu")
        self._seconds, self._steps = 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Counts the time of the block on the host."""
        began = perf_counter()
        yield
        self._seconds += perf_counter() - began

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Counts the time of the block on the device. On a GPU the work is not waited for: events are read by `report`."""
        if self._device.type != "cuda" or self._world == 1:
            with self.reading():
                yield
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def report(self, step: int) -> dict[str, Any]:
        """Entries of a row of metrics, after every step: the rank that works longest, its mean seconds of a step, and these as a multiple
        of the median of all ranks. None except every so many steps, when ranks exchange their times; and in one process."""
        self._steps += 1
        if step % self._every or self._world == 1:
            return {"slowest_rank": None, "slowest_rank_seconds": None, "slowest_rank_ratio": None}
        # The numbers of the step have left the device, so that its events have happened.
        self._seconds += sum(first.elapsed_time(last) for first, last in self._events) / 1000
        means = torch.zeros(self._world, dtype=torch.float64, device=self._device)
        means[self._rank] = self._seconds / self._steps
        dist.all_reduce(means)
        self._seconds, self._steps = 0.0, 0
        self._events.clear()
        return slowest(means.tolist())


def slowest(seconds: list[float]) -> dict[str, Any]:
    """The rank with the longest time, that time, and it as a multiple of the median."""
    longest, median = max(seconds), statistics.median(seconds)
    return {
        "slowest_rank": seconds.index(longest), "slowest_rank_seconds": longest,
        "slowest_rank_ratio": longest / median if median else None,
    }  # fmt: skip
