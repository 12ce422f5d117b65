"""The rows of each step: sources by the mixture, and from each source the next rows of its stream that are not left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleeptrain.data.mixture import Mix, Mixer

Spans = tuple[tuple[int, int], ...]
"""For each source the positions in its stream from which a step reads: the first, and the one after the last."""


class Draws:
    """Draws the rows of step after step. What is drawn depends on the mix, the rows of a step and the state alone."""

    def __init__(self, mix: Mix, rows_per_step: int) -> None:
        sources = len(mix.points)
        self._mixer = Mixer(mix, rows_per_step)
        self.rows = [0] * sources
        """Rows drawn from each source."""
        self._next = [0] * sources
        self.left_out: list[Spans] = []
        """What earlier readings of steps have read and this one does not: it counts neither as rows nor in the mixture."""

    @property
    def mix(self) -> Mix:
        """The shares of the sources."""
        return self._mixer.mix

    @property
    def step(self) -> int:
        """The next step, from 0 on."""
        return self._mixer.step

    def next_step(self) -> list[tuple[int, int]]:
        """For each row of the next global batch, its source and its position in the stream of that source."""
        drawn = []
        for source in self._mixer.next_step():
            position = self._next[source]
            for start, stop in sorted(spans[source] for spans in self.left_out):
                if start <= position < stop:
                    position = stop
            drawn.append((source, position))
            self._next[source] = position + 1
            self.rows[source] += 1
        return drawn

    def leave_out(self, steps: Sequence[Spans]) -> None:
        """Do not draw from these positions, besides those that are left out already."""
        self.left_out += [spans for spans in steps if spans not in self.left_out]

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values; equal for any number of ranks and workers."""
        return {
            "step": self.step, "rows": list(self.rows), "next": list(self._next), "credits": list(self._mixer.credits),
            "left_out": [[list(span) for span in spans] for spans in self.left_out],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a `state_dict`."""
        self._mixer = Mixer(self._mixer.mix, self._mixer.rows, state["step"], state["credits"])
        self.rows, self._next = list(state["rows"]), list(state["next"])
        self.left_out = [spans_of(spans) for spans in state["left_out"]]


def spans_of(drawn: Sequence[Sequence[int]]) -> Spans:
    """Spans from their JSON values."""
    return tuple((start, stop) for start, stop in drawn)


def span_drawn(drawn: Sequence[tuple[int, int]], sources: int) -> Spans:
    """The spans of rows that were drawn; empty, at 0, for a source without rows."""
    positions = [[position for source, position in drawn if source == one] for one in range(sources)]
    return tuple((min(some), max(some) + 1) if some else (0, 0) for some in positions)
