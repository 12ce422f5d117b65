"""Memory that torch's CPU allocator hands out while a function runs, for benchmarks.

It includes scratch memory of kernels, which depends on the CPU and on the number of threads. Tests count storages instead
(tests/storages.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocated(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that `work` allocates and that exist when it ends, its result included, and the peak while it runs.

    Counted by torch's profiler, which does not see what other threads free.
    """
    os.environ["KINETO_LOG_LEVEL"] = "6"  # otherwise the profiler writes to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    del result
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return now, peak
