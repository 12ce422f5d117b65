"""The guard of a training: which gradients are too large, and what follows steps whose loss or gradient is not finite."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from sleeptrain.data.draws import Spans, spans_of

RECENT, ENOUGH = 100, 20
"""Steps whose norms are compared with, and how many there must be."""


@dataclass
class Guard:
    """Counts steps that were skipped one after another. After a streak of them further data does not help: weights are bad.

    The trainer then goes back to its last checkpoint and leaves out the data of the streak, a limited number of times.
    """

    limit: int
    """Length of a streak."""
    rollbacks_left: int
    streak: list[Spans] = field(default_factory=list)
    """What the steps of the current streak have read."""
    spike: float | None = None
    """A finite norm of more than this many times the median is a spike; None: never."""
    norms: list[float] = field(default_factory=list)
    """The finite norms of recent steps, those of skipped ones too, so that the median follows norms that stay large."""

    @property
    def median(self) -> float:
        """The median of the recent norms."""
        return statistics.median(self.norms)

    @property
    def max_norm(self) -> float:
        """The largest norm with which the next step is applied."""
        return math.inf if self.spike is None or len(self.norms) < ENOUGH else self.spike * self.median

    def spike_warning(self, step: int, norm: float) -> str:
        """What is said of a step that is skipped because its gradient is large, before it is observed."""
        return (
            f"warning: step {step} is skipped: its gradient norm {norm:.3g} is more than {self.spike:g} times {self.median:.3g}, the "
            f"median of the last {len(self.norms)} steps (train.guard.spike)"
        )

    def observe(self, grad_norm: float | None, read: Spans) -> bool:
        """Note a step that has `read` this data; its norm is None if a loss or gradient was not finite.

        Whether the trainer has to go back.
        """
        self.streak = [*self.streak, read] if grad_norm is None else []
        if grad_norm is not None and self.spike is not None:
            self.norms = [*self.norms, grad_norm][-RECENT:]
        return len(self.streak) >= self.limit

    def state_dict(self) -> dict[str, Any]:
        """The streak and the recent norms, as JSON values."""
        return {"streak": [[list(span) for span in read] for read in self.streak], "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the streak of a run that was stopped in it."""
        self.streak = [spans_of(read) for read in state["streak"]]
        self.norms = list(state.get("norms", []))
