"""The circular pipeline: this process's stage of it, and the schedules that all stages have agreed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sleeptrain.execute.autograd import FinalizeGrads, run_with_autograd
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.p2p import P2PChannels, agree
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.execute.store import ActionObserver
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.program import Program
from sleeptrain.schedule import RecomputePolicy, Schedule, StageBlocks, build_schedule, checked

ScheduleBuilder = Callable[[Program, int], Schedule]
"""The schedule of a program for a group of that many micro-batches."""


@dataclass
class Pipeline:
    """One stage, on this process; the others are on the processes that `edges` lead to."""

    build: ScheduleBuilder
    edges: P2PChannels
    sum_dtype: torch.dtype = torch.float32
    finalize_grads: FinalizeGrads | None = None
    observer: ActionObserver | None = None
    graph_cache: GraphCache | None = None
    _plans: dict[tuple[str, int], StagePlan] = field(default_factory=dict)

    def run(self, model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        """Run a program over a group of micro-batches; all stages call this with the same program and rows.

        Losses are those of the last stage and zero on the others. `backward` must be called on all of them, once, from all
        results together. Raises ValueError, before anything is sent, for a schedule that cannot be carried out or that not
        all processes hold alike; StageLost where another stage does not answer.
        """
        plan = self.plan(program, len(group), next(model.parameters()).device)
        stage = StageExecutor(
            model, group, plan, self.edges, GradAccumulator(self.sum_dtype), self.observer, self.graph_cache
        )
        return run_with_autograd(stage, self.finalize_grads)

    def plan(self, program: Program, group: int, device: torch.device) -> StagePlan:
        """This stage's part of a program's schedule; a collective over all processes of the run the first time."""
        if (program.key, group) not in self._plans:
            schedule = checked(self.build(program, group))
            agree(schedule.key, "schedules")
            self.edges.open(schedule.channels, device)
            self._plans[program.key, group] = StagePlan(schedule, self.edges.stage)
        return self._plans[program.key, group]


def circular_schedule(stages: Sequence[StageBlocks], recompute: RecomputePolicy, tied: bool) -> ScheduleBuilder:
    """The circular order over these stages."""

    def placed(program: Program, group: int) -> Schedule:
        return build_schedule(program, stages, group, recompute, tied)

    return placed
