"""The tape: one autograd function over the parameters, which keeps what a policy says and recomputes the rest.

Plain autograd over the unrolled program sums the uses of a bf16 weight in bf16, keeps every activation, and cannot be cut
at the stages of a pipeline. Here a schedule is carried out without a graph; backward carries out its second half, sums
each weight's gradients in a type of its own, and returns each parameter's gradient once, so that whoever watches gradients
arrive (ZeRO does) sees each of them once, and complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.execute.stage_plan import single_stage_plan
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.program import Program, Sleep
from sleeptrain.schedule import RECOMPUTE_POLICIES

RecomputeName = Literal["none", "block", "pass", "window"]
"""What is kept for backward: `none` recomputes nothing; `block` keeps the features entering every block and the state
entering every pass; `pass` features and state entering every pass; `window` the state entering every window."""
FinalizeGrads = Callable[[GradAccumulator], None]
"""Completes the sums of gradients, once, before they are handed out."""


class CheckpointedExecutor:
    """A program over micro-batches, run once and taken back once, on one process that holds all blocks."""

    def __init__(
        self, model: LanguageModel, group: Sequence[MicroBatch], program: Program, sleep: Sleep, policy: RecomputeName = "none", *,
        offload: bool = False, sum_dtype: torch.dtype = torch.float32, finalize_grads: FinalizeGrads | None = None,
        graph_cache: GraphCache | None = None,
    ) -> None:  # fmt: skip
        recompute = replace(RECOMPUTE_POLICIES[policy], offload=offload)
        plan = single_stage_plan(program, sleep, len(model.layers), len(group), recompute)
        self.stage, self.finalize_grads = (
            StageExecutor(model, group, plan, None, GradAccumulator(sum_dtype), graph_cache=graph_cache),
            finalize_grads,
        )

    def run(self) -> list[ProgramOutput]:
        """Run the program over every micro-batch. Gradients flow back from the `nll` of the results, all in one call of
        `backward`; they reach the parameters, not the states that were given."""
        return run_with_autograd(self.stage, self.finalize_grads)

    def bytes(self) -> dict[str, int]:
        """What is kept for backward at this moment, in bytes, by component."""
        return self.stage.bytes()


def run_with_autograd(stage: StageExecutor, finalize_grads: FinalizeGrads | None = None) -> list[ProgramOutput]:
    """Carry out the first half of a stage's actions; `backward` from the results carries out the second half."""
    nlls = _ScheduleFunction.apply(stage, finalize_grads, *stage.model.parameters())
    return [stage.result(micro, nll) for micro, nll in enumerate(nlls)]


class _ScheduleFunction(torch.autograd.Function):
    """From parameters to losses."""

    @staticmethod
    def forward(
        ctx: Any, stage: StageExecutor, finalize_grads: FinalizeGrads | None, *weights: nn.Parameter
    ) -> tuple[Tensor, ...]:
        ctx.stage, ctx.finalize_grads, ctx.weights = stage, finalize_grads, weights
        ctx.set_materialize_grads(False)
        return stage.forward()

    @staticmethod
    def backward(ctx: Any, *d_nlls: Tensor | None) -> tuple[Tensor | None, ...]:
        stage, ctx.stage = ctx.stage, None
        if stage is None:
            raise RuntimeError("a tape goes back once; run the program again")
        stage.backward(d_nlls)
        if ctx.finalize_grads is not None:
            ctx.finalize_grads(stage.sums)
        return None, None, *(stage.sums.take(w) if w.requires_grad else None for w in ctx.weights)
