"""How long the phases of a start take: one line each."""

from __future__ import annotations

import time
from collections.abc import Callable


class StartClock:
    """Says what a start has done, with the seconds since it last said something."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """`say` prints a line; without it nothing is printed."""
        self._say, self._last, self._first_step = say, time.perf_counter(), True

    def lap(self, line: str) -> None:
        """Say what was done since the last call."""
        now = time.perf_counter()
        if self._say is not None:
            self._say(f"{line}, {now - self._last:.1f} s")
        self._last = now

    def stepped(self) -> None:
        """To be called after every step: of the first one it says also how long ago the process began."""
        if self._say is not None and self._first_step:
            import psutil

            self.lap(f"first   step {time.time() - psutil.Process().create_time():.1f} s after the process began")
        self._first_step = False
