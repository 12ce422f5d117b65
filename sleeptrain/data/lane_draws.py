"""The rows of each step where rows are lanes: each lane reads a run of consecutive rows to its end, then begins another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleeptrain.data.draws import Drawn, Spans, not_left_out, spans_of
from sleeptrain.data.mixture import Mix
from sleeptrain.data.order import RunOrder


class LaneDraws:
    """Draws the rows of step after step; row i of every global batch is lane i.

    A lane that begins a run takes the next one of a source. It is the source whose share of all rows of the runs begun so far, by the
    mix at this step, exceeds most what it has of them. So its rows differ from its share by about a run. What is drawn depends
    on the mix, the runs, the number of lanes and the state alone.
    """

    def __init__(self, mix: Mix, runs: Sequence[RunOrder], lanes: int) -> None:
        self.mix, self.step = mix, 0
        """Shares of the sources, and the next step, from 0 on."""
        self._runs = runs
        self._lanes: list[Drawn | None] = [None] * lanes
        """The next row of every lane; None where it begins a run."""
        self._next = [0] * len(runs)
        self._credits = [0] * len(runs)
        """Shares so far less rows of all runs begun so far, in units of the mix."""
        self.rows = [0] * len(runs)
        """Rows drawn from each source."""
        self.left_out: list[Spans] = []
        """Runs of which earlier readings of steps have read something and this one does not."""

    def next_step(self) -> list[Drawn]:
        """The rows of the next global batch."""
        drawn = [self._begin() if row is None else row for row in self._lanes]
        for lane, (source, position, offset) in enumerate(drawn):
            left = offset + 1 < self._runs[source].rows(position)
            self._lanes[lane] = Drawn(source, position, offset + 1) if left else None
            self.rows[source] += 1
        self.step += 1
        return drawn

    def leave_out(self, steps: Sequence[Spans]) -> None:
        """Do not draw from runs of which these steps have read, besides those that are left out already. Lanes that are in one leave it."""
        self.left_out += [spans for spans in steps if spans not in self.left_out]
        for lane, row in enumerate(self._lanes):
            if row is not None and not_left_out(row.position, row.source, self.left_out) != row.position:
                self._lanes[lane] = None

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values; equal for any number of ranks and workers."""
        return {
            "step": self.step, "rows": list(self.rows), "next": list(self._next),
            "credits": list(self._credits), "unit": self.mix.unit,
            "left_out": [[list(span) for span in spans] for spans in self.left_out],
            "lanes": [None if row is None else list(row) for row in self._lanes],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a `state_dict` of as many lanes, of another mix, too."""
        self.step, self.rows, self._next = state["step"], list(state["rows"]), list(state["next"])
        self._credits = self.mix.converted(state["credits"], state.get("unit", self.mix.unit))
        self.left_out = [spans_of(spans) for spans in state["left_out"]]
        self._lanes = [None if row is None else Drawn(*row) for row in state["lanes"]]

    def _begin(self) -> Drawn:
        """The first row of the next run."""
        shares = self.mix.shares(min(self.step, self.mix.last))
        source = max((s for s, share in enumerate(shares) if share), key=lambda s: self._credits[s] + shares[s])
        position = not_left_out(self._next[source], source, self.left_out)
        self._next[source] = position + 1
        rows = self._runs[source].rows(position)
        self._credits = [credit + share * rows for credit, share in zip(self._credits, shares, strict=True)]
        self._credits[source] -= self.mix.unit * rows
        return Drawn(source, position)
