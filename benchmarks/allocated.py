"""What torch's allocator hands out on a CPU while something runs, whoever holds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocated(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that `work` allocates and that exist when it ends, its result included; the most that exist at a time.

    What other threads free is not seen.
    """
    os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler writes to stderr otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    del result
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return now, most
