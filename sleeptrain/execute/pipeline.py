"""The circular pipeline: runs this process's stage of a program by a schedule that all ranks have checked and share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sleeptrain.execute.autograd import DEFAULT_OPTIONS, ExecutorOptions, run_with_autograd, run_without_backward
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.p2p import P2PChannels, assert_same_schedule
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.program import Program
from sleeptrain.schedule import Schedule, checked

ScheduleBuilder = Callable[[Program, int], Schedule]
"""The schedule of a program for a group of that many micro-batches."""


@dataclass
class Pipeline:
    """One pipeline stage, on this process; `p2p` connects it to the other stages."""

    build: ScheduleBuilder
    p2p: P2PChannels
    options: ExecutorOptions = DEFAULT_OPTIONS
    _plans: dict[tuple[str, int], StagePlan] = field(default_factory=dict)

    def run(
        self, model: LanguageModel, micro_batches: Sequence[MicroBatch], program: Program, *, predict: bool = False
    ) -> list[ProgramOutput]:
        """Run a program over a group of micro-batches; every stage calls this with the same program and rows.

        The last stage returns the losses, the others zeros. Every stage must call `backward` once, from all results
        together. With `predict` the last stage returns the likeliest tokens too, and there is no backward. Raises ValueError, before any message, for an invalid schedule and for one that differs between ranks;
        StageLost where another stage does not answer.
        """
        plan = self.plan(program, len(micro_batches), next(model.parameters()).device)
        options = self.options
        stage = StageExecutor(
            model, micro_batches, plan, self.p2p, options.accumulator(model), options.graph_cache, predict=predict
        )
        return run_without_backward(stage) if predict else run_with_autograd(stage)

    def plan(self, program: Program, group: int, device: torch.device) -> StagePlan:
        """This stage's plan of a program; the first call for a program is a collective over all ranks of the run."""
        if (program.key, group) not in self._plans:
            schedule = checked(self.build(program, group))
            assert_same_schedule(schedule.key)
            self.p2p.open(schedule.channels, device)
            self._plans[program.key, group] = StagePlan(schedule, self.p2p.stage)
        return self._plans[program.key, group]
