"""Stopping cleanly: a signal asks, every rank agrees, the step in flight is finished and saved."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

STDERR = 2


class StopRequest:
    """A context in which SIGINT and SIGTERM ask for a stop instead of ending the process; the same one again ends it at once.

    One of each is one request: launchers answer Ctrl-C, which the terminal sends to all processes, with SIGTERM of their own.
    """

    def __init__(self, tell: bool = False) -> None:
        """`tell` says on the terminal that it was heard: a step can take a while."""
        self.signal: int | None = None
        self._tell = tell
        self._heard: set[int] = set()
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in self._heard:
            raise KeyboardInterrupt
        if self._tell and not self._heard:
            # Not print: this may have interrupted one, and buffered streams refuse to be entered twice.
            os.write(STDERR, b"\nstopping after this step; the same signal again ends it at once\n")
        self._heard.add(number)
        self.signal = number if self.signal is None else self.signal

    def agreed(self, device: torch.device | str) -> bool:
        """Whether any rank was asked to stop. All ranks must call it, at the same step."""
        asked = torch.tensor([self.signal or 0], device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() and self.signal is None:
            self.signal = int(asked.item())
        return bool(asked.item())
