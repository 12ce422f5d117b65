"""Graceful stop: a signal on any rank, or a file in the run folder, stops all ranks after the current step, which is saved."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

STDERR = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; schedulers and systemd; a closed terminal; what a job of SLURM asks for by --signal=USR1@N, and submitit by USR2."""
STOP_FILE = "stop"
"""A file of this name in the run folder asks the run to stop. It is removed when the run stops, or is done."""
REPEAT = 1.0
"""Seconds after which another SIGINT is a repetition: terminals and launchers send one Ctrl-C several times."""
BY_FILE = -1
"""The reason of a stop that the file asked for, beside numbers of signals."""


class SignalHandler(ABC):
    """Context manager in which `_handle` gets SIGNALS; afterwards the handlers before are back."""

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @abstractmethod
    def _handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""


class StopRequest(SignalHandler):
    """Context manager that turns signals and the stop file into a request. Only a repeated SIGINT ends the process at once.

    A scheduler's SIGTERM reaches a rank several times: directly, by its launcher, and again when another rank has ended.
    """

    def __init__(self, folder: Path | None = None, announce: bool = False) -> None:
        """`folder` is looked into by this rank; `announce` confirms the first signal on the terminal, because a step can take a while."""
        self.reason: int | None = None
        """The first signal that was received on the rank with the largest number, BY_FILE, or None."""
        self._folder, self._announce = folder, announce
        self._interrupted: float | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and self._folder is not None:  # a request to a run that is done is not one to its continuation
            (self._folder / STOP_FILE).unlink(missing_ok=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > REPEAT:
                raise KeyboardInterrupt
            self._interrupted = now if self._interrupted is None else self._interrupted
        if self._announce and self.reason is None:
            # os.write instead of print: the handler may have interrupted a print, and buffered streams are not reentrant.
            os.write(STDERR, b"\nstopping after this step; Ctrl-C again stops without a save\n")
        self.reason = number if self.reason is None else self.reason

    def agreed(self, device: torch.device | str) -> bool:
        """Whether any rank has a request: an all-reduce, which all ranks call at the same step."""
        if self.reason is None and self._folder is not None and (self._folder / STOP_FILE).exists():
            self.reason = BY_FILE
        # Shifted by one, so that the file, -1, is told from no reason.
        number = torch.tensor([0 if self.reason is None else self.reason + 2], device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
        if found := int(number.item()):
            self.reason = found - 2
            if self._folder is not None:
                (self._folder / STOP_FILE).unlink(missing_ok=True)
        return bool(found)
