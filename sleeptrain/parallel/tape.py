"""The tape: one autograd function over the parameters, which keeps what a policy says and recomputes the rest.

Plain autograd over the unrolled program sums the uses of a bf16 weight in bf16, keeps every activation, and cannot be cut
at the stages of a pipeline. Here a timeline is carried out without a graph; backward carries out its second half, sums
each weight's gradients in a type of its own, and returns each parameter's gradient once, so that whoever watches gradients
arrive (ZeRO does) sees each of them once, and complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result
from sleeptrain.parallel.plan import alone
from sleeptrain.parallel.replay import Replays
from sleeptrain.parallel.stages import StageRun
from sleeptrain.parallel.sums import Sums
from sleeptrain.parallel.units import Rows
from sleeptrain.program import POLICIES, Program, Sleep

Policy = Literal["none", "block", "pass", "window"]
"""What is kept for backward: `none` recomputes nothing; `block` keeps the features entering every block and the state
entering every pass; `pass` features and state entering every pass; `window` the state entering every window."""
AddUp = Callable[[Sums], None]
"""Completes the sums of gradients, once, before they are handed out."""


class Tape:
    """A program over micro-batches, run once and taken back once, on one process that holds all blocks."""

    def __init__(
        self, model: LanguageModel, group: Sequence[Rows], program: Program, sleep: Sleep, policy: Policy = "none", *,
        offload: bool = False, sum_dtype: torch.dtype = torch.float32, add_up: AddUp | None = None,
        replays: Replays | None = None,
    ) -> None:  # fmt: skip
        retain = replace(POLICIES[policy], offload=offload)
        plan = alone(program, sleep, len(model.layers), len(group), retain)
        self.stage, self.add_up = StageRun(model, group, plan, None, Sums(sum_dtype), replays=replays), add_up

    def run(self) -> list[Result]:
        """Run the program over every micro-batch. Gradients flow back from the `nll` of the results, all in one call of
        `backward`; they reach the parameters, not the states that were given."""
        return carry_out(self.stage, self.add_up)

    def bytes(self) -> dict[str, int]:
        """What is kept for backward at this moment, in bytes, by component."""
        return self.stage.bytes()


def carry_out(stage: StageRun, add_up: AddUp | None = None) -> list[Result]:
    """Carry out the first half of a stage's actions; `backward` from the results carries out the second half."""
    nlls = _OverParameters.apply(stage, add_up, *stage.model.parameters())
    return [stage.result(micro, nll) for micro, nll in enumerate(nlls)]


class _OverParameters(torch.autograd.Function):
    """From parameters to losses."""

    @staticmethod
    def forward(ctx: Any, stage: StageRun, add_up: AddUp | None, *weights: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.stage, ctx.add_up, ctx.weights = stage, add_up, weights
        ctx.set_materialize_grads(False)
        return stage.forward()

    @staticmethod
    def backward(ctx: Any, *d_nlls: Tensor | None) -> tuple[Tensor | None, ...]:
        stage, ctx.stage = ctx.stage, None
        if stage is None:
            raise RuntimeError("a tape goes back once; run the program again")
        stage.backward(d_nlls)
        if ctx.add_up is not None:
            ctx.add_up(stage.sums)
        return None, None, *(stage.sums.take(w) if w.requires_grad else None for w in ctx.weights)
