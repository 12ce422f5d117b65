"""The rows of each step: sources by the mixture, and from each source the next rows of its stream that are not left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sleeptrain.data.mixture import Mix, Mixer

Spans = tuple[tuple[int, int], ...]
"""For each source the positions in its stream from which a step reads: the first, and the one after the last."""


class Drawn(NamedTuple):
    """A row of a step."""

    source: int
    position: int
    """Of the row, or of its run, in the stream of the source."""
    offset: int = 0
    """Number of the row in its run."""


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

    def next_step(self) -> list[Drawn]:
        """The rows of the next global batch."""
        drawn = []
        for source in self._mixer.next_step():
            position = not_left_out(self._next[source], source, self.left_out)
            drawn.append(Drawn(source, position))
            self._next[source] = position + 1
            self.rows[source] += 1
        return drawn

    def leave_out(self, steps: Sequence[Spans]) -> None:
        """Do not draw from these positions, besides those that are left out already."""
        self.left_out += [spans for spans in steps if spans not in self.left_out]

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values; equal for any number of ranks and workers."""
        return {
            "step": self.step, "rows": list(self.rows), "next": list(self._next),
            "credits": list(self._mixer.credits), "unit": self.mix.unit,
            "left_out": [[list(span) for span in spans] for spans in self.left_out],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a `state_dict`, of another mix, too: the rows that sources are owed so far are kept."""
        self._mixer = Mixer(
            self.mix,
            self._mixer.rows,
            state["step"],
            self.mix.converted(state["credits"], state.get("unit", self.mix.unit)),
        )
        self.rows, self._next = list(state["rows"]), list(state["next"])
        self.left_out = [spans_of(spans) for spans in state["left_out"]]


def not_left_out(position: int, source: int, left_out: Sequence[Spans]) -> int:
    """The first position in the stream of a source, from `position` on, that is not left out."""
    for start, stop in sorted(spans[source] for spans in left_out):
        if start <= position < stop:
            position = stop
    return position


def spans_of(drawn: Sequence[Sequence[int]]) -> Spans:
    """Spans from their JSON values."""
    return tuple((start, stop) for start, stop in drawn)


def span_drawn(drawn: Sequence[Drawn], sources: int) -> Spans:
    """The spans of rows that were drawn; empty, at 0, for a source without rows."""
    positions = [[row.position for row in drawn if row.source == one] for one in range(sources)]
    return tuple((min(some), max(some) + 1) if some else (0, 0) for some in positions)
