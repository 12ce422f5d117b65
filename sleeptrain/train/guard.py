"""The guard of a training: what follows steps whose loss or gradient is not finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sleeptrain.data.reader import Position


@dataclass
class Guard:
    """Counts steps that were skipped one after another. After a streak of them further data does not help: weights are bad.

    The trainer then goes back to its last checkpoint and leaves out the data of the streak, a limited number of times.
    """

    limit: int
    """Length of a streak."""
    rollbacks_left: int
    streak: list[Position] = field(default_factory=list)
    """Where the steps of the current streak begin in the data."""

    def observe(self, skipped: bool, position: Position) -> bool:
        """Note a step that read the data at `position`. Whether the trainer has to go back."""
        self.streak = [*self.streak, position] if skipped else []
        return len(self.streak) >= self.limit

    def state_dict(self) -> dict[str, Any]:
        """The streak, as JSON values."""
        return {"streak": [list(position) for position in self.streak]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the streak of a run that was stopped in it."""
        self.streak = [(epoch, sample) for epoch, sample in state["streak"]]
