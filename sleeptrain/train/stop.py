"""Stopping cleanly: a signal asks, every rank agrees, the step in flight is finished and saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist


class StopRequest:
    """A context in which SIGINT and SIGTERM ask for a stop instead of ending the process; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
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
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, device: torch.device | str) -> bool:
        """Whether any rank was asked to stop. All ranks must call it, at the same step."""
        asked = torch.tensor([self.signal or 0], device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() and self.signal is None:
            self.signal = int(asked.item())
        return bool(asked.item())
