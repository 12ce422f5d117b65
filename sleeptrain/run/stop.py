"""Graceful stop: a signal on any rank stops all ranks after the current step, which is saved."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

STDERR = 2


class StopRequest:
    """Context manager that turns SIGINT and SIGTERM into a stop request; the second of the same signal ends the process.

    A SIGINT followed by a SIGTERM is one request: on Ctrl-C the terminal sends SIGINT to all processes, and launchers then
    send SIGTERM to theirs.
    """

    def __init__(self, announce: bool = False) -> None:
        """`announce` confirms the first signal on the terminal, because a step can take a while."""
        self.signal: int | None = None
        self._announce = announce
        self._received: set[int] = set()
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._received:
            raise KeyboardInterrupt
        if self._announce and not self._received:
            # os.write instead of print: the handler may have interrupted a print, and buffered streams are not reentrant.
            os.write(STDERR, b"\nstopping after this step; repeat the signal to stop immediately\n")
        self._received.add(number)
        self.signal = number if self.signal is None else self.signal

    def agreed(self, device: torch.device | str) -> bool:
        """Whether any rank received a signal: an all-reduce, which all ranks call at the same step."""
        number = torch.tensor([self.signal or 0], device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
        if number.item() and self.signal is None:
            self.signal = int(number.item())
        return bool(number.item())
