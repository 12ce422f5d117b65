"""Progress of a build: bars on a terminal, lines elsewhere, with the rate and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Show = Callable[[str, int, "int | None"], None]
"""Called with what is counted, the number so far, and its total or None."""
EVERY = 30.0
"""Seconds between two lines."""


def with_progress(work: Callable[[Show | None], Any], quiet: bool) -> Any:
    """Run `work(show)` with its progress on the error stream, or `work(None)` if `quiet`."""
    if quiet:
        return work(None)
    if not sys.stderr.isatty():
        return work(Lines().show)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    rate = TaskProgressColumn(text_format="", show_speed=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar_of: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in bar_of:
                bar_of[what] = bars.add_task(what, total=total)
            bars.update(bar_of[what], completed=done, total=total)

        return work(show)


class Lines:
    """A line on the error stream every 30 seconds, as in the log of a job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}
        self._printed = clock()

    def show(self, what: str, done: int, total: int | None) -> None:
        """Print a line if the last one is old enough."""
        now = self._clock()
        start, before = self._first.setdefault(what, (now, done))
        if now - self._printed < EVERY or now == start:
            return
        self._printed = now
        rate = (done - before) / (now - start)
        left = f", {(total - done) / rate / 60:.0f} min left" if total and rate else ""
        print(f"{what}: {done:,}{f' of {total:,}' if total else ''}, {rate:,.1f}/s{left}", file=sys.stderr, flush=True)
