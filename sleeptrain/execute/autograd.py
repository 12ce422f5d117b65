"""The autograd function that runs a schedule: its forward half in forward, its backward half in backward.

Plain autograd over the unrolled program has three limits: it sums the gradients of all uses of a bf16 weight in bf16, it
saves every activation, and it cannot be divided into pipeline stages. Here the forward half runs without a graph. Backward
runs the backward half, which recomputes what the policy did not save, and accumulates each weight's gradient in float32: in the
engine's buffer of that weight, if it has one. Every other parameter then gets one complete gradient, so gradient hooks
(those of ZeRO) fire once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import Accumulate, GradAccumulator, accumulate
from sleeptrain.execute.stage_plan import single_stage_plan
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.program import Program, Sleep
from sleeptrain.schedule import RECOMPUTE_POLICIES

RecomputeName = Literal["none", "selective", "block", "pass", "window"]
"""What is saved for backward: `none` recomputes nothing and saves all activations; `selective` saves the features entering every
block and the outputs of its matrix products, attention and delta rule; `block` saves the features entering
every block and the state entering every pass; `pass` the features and state entering every pass; `window` the state
entering every window."""


@dataclass(frozen=True)
class ExecutorOptions:
    """Where gradients are accumulated, and whether passes are replayed as CUDA graphs."""

    grad_buffers: Mapping[Tensor, Tensor] = field(default_factory=dict)
    """By weight, the float32 tensor of the engine that its gradients are added to; the other weights get a gradient."""
    graph_cache: GraphCache | None = None
    """The CUDA graphs of a run, made with the same buffers; None: kernels are launched one by one."""
    accumulate: Accumulate = accumulate
    """Adds gradients to their sums; that of a graph cache is its own."""

    def accumulator(self, model: LanguageModel) -> GradAccumulator:
        """What accumulates the gradients of a step of `model`."""
        return GradAccumulator(self.grad_buffers, model.partial_grads(), self.accumulate)


DEFAULT_OPTIONS = ExecutorOptions()


class CheckpointedExecutor:
    """Runs a program over a group of micro-batches on one process that holds all blocks, with activation checkpointing."""

    def __init__(
        self, model: LanguageModel, micro_batches: Sequence[MicroBatch], program: Program, sleep: Sleep,
        policy: RecomputeName = "none", *, offload: bool = False, options: ExecutorOptions = DEFAULT_OPTIONS,
        predict: bool = False,
    ) -> None:  # fmt: skip
        """`predict`: `run` returns the likeliest tokens too, saves nothing for backward, and results have no gradient."""
        recompute = replace(RECOMPUTE_POLICIES[policy], offload=offload)
        plan = single_stage_plan(program, sleep, len(model.layers), len(micro_batches), recompute)
        self.stage = StageExecutor(
            model, micro_batches, plan, None, options.accumulator(model), options.graph_cache, predict=predict
        )
        self.predict = predict

    def run(self) -> list[ProgramOutput]:
        """Run the program over every micro-batch.

        `backward` from the `nll` of the results may be called once, from all results together. Parameters get gradients;
        the initial states do not.
        """
        return run_without_backward(self.stage) if self.predict else run_with_autograd(self.stage)

    def bytes(self) -> dict[str, int]:
        """The bytes held on the device at the moment, by component; after `run`, those saved for backward."""
        return self.stage.bytes()


def run_with_autograd(stage: StageExecutor) -> list[ProgramOutput]:
    """Run the forward half of a stage's actions; `backward` from the results runs the backward half."""
    nlls = _ScheduleFunction.apply(stage, *stage.model.parameters())
    return [stage.result(micro, nll) for micro, nll in enumerate(nlls)]


@torch.no_grad()
def run_without_backward(stage: StageExecutor) -> list[ProgramOutput]:
    """Run the forward half of a stage's actions and drop what it saved."""
    return [stage.result(micro, nll) for micro, nll in enumerate(stage.forward())]


class _ScheduleFunction(torch.autograd.Function):
    """The losses of all micro-batches as a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, stage: StageExecutor, *weights: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.stage, ctx.weights = stage, weights
        ctx.set_materialize_grads(False)
        return stage.forward()

    @staticmethod
    def backward(ctx: Any, *d_nlls: Tensor | None) -> tuple[Tensor | None, ...]:
        stage, ctx.stage = ctx.stage, None
        if stage is None:
            raise RuntimeError("backward can be called only once per run; run the program again")
        stage.backward(d_nlls)
        stage.model.complete_grads(stage.grads.of)
        return None, *(stage.grads.take(w) if w.requires_grad else None for w in ctx.weights)
