"""The circular pipeline: this process's stage of it, and the timelines that all stages have agreed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result
from sleeptrain.parallel.edges import Edges, agree
from sleeptrain.parallel.plan import Plan, key, proven
from sleeptrain.parallel.replay import Replays
from sleeptrain.parallel.stages import StageRun
from sleeptrain.parallel.store import Watch
from sleeptrain.parallel.sums import Sums
from sleeptrain.parallel.tape import AddUp, carry_out
from sleeptrain.parallel.units import Rows
from sleeptrain.program import Program, Retain, Slice, Timeline, place

Placing = Callable[[Program, int], Timeline]
"""The timeline of a program for a group of that many micro-batches."""


@dataclass
class Pipeline:
    """One stage, on this process; the others are on the processes that `edges` lead to."""

    placing: Placing
    edges: Edges
    sum_dtype: torch.dtype = torch.float32
    add_up: AddUp | None = None
    watch: Watch | None = None
    replays: Replays | None = None
    _plans: dict[tuple[str, int], Plan] = field(default_factory=dict)

    def run(self, model: LanguageModel, group: Sequence[Rows], program: Program) -> list[Result]:
        """Run a program over a group of micro-batches; all stages call this with the same program and rows.

        Losses are those of the last stage and zero on the others. `backward` must be called on all of them, once, from all
        results together. Raises ValueError, before anything is sent, for a timeline that cannot be carried out or that not
        all processes hold alike; StageLost where another stage does not answer.
        """
        plan = self.plan(program, len(group), next(model.parameters()).device)
        stage = StageRun(model, group, plan, self.edges, Sums(self.sum_dtype), self.watch, self.replays)
        return carry_out(stage, self.add_up)

    def plan(self, program: Program, group: int, device: torch.device) -> Plan:
        """This stage's part of a program's timeline; a collective over all processes of the run the first time."""
        if (program.key, group) not in self._plans:
            timeline = proven(self.placing(program, group))
            agree(key(timeline), "timelines")
            self.edges.open(timeline.channels, device)
            self._plans[program.key, group] = Plan(timeline, self.edges.stage)
        return self._plans[program.key, group]


def placing(stages: Sequence[Slice], retain: Retain, tied: bool) -> Placing:
    """The circular order over these stages."""

    def placed(program: Program, group: int) -> Timeline:
        return place(program, stages, group, retain, tied)

    return placed
