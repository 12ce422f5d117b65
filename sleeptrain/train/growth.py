"""How fast the gradient of the fast weights grows from window to window: from a step's measurements, and before step one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Pass, Program, Sleep, loop_range
from sleeptrain.train.job import Job
from sleeptrain.train.step import StepContext, sum_over_ranks

EXPLODING = 100.0
"""A growth over all windows that is reported as an explosion."""
DEEP = 8
"""Looped blocks from which a plan mentions the growth; four blocks train without a remedy."""


def growth(norms: Sequence[float]) -> float | None:
    """The mean factor by which the gradient of S grows from one window to the window before it.

    `norms` are those after every window but the last. None for fewer than two of them, and where the last one is 0.
    """
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1)) if len(norms) > 1 and norms[-1] > 0 else None


def can_explode(sleep: Sleep, program: Program) -> bool:
    """Whether features and S form a full recurrence over windows, whose gradient explodes in deep stacks (docs/depth.md).

    Passes must read features of the pass before, and gradients cross two boundaries between sleeping windows or more.
    """
    passes = max(op.of for op in program.ops if isinstance(op, Pass))
    truncated = sleep.gradient.passes != "all" and sleep.gradient.passes < passes
    horizon = program.windows if sleep.gradient.windows == "all" else min(sleep.gradient.windows, program.windows)
    return passes > 1 and sleep.loop.feedback != "embeddings" and not truncated and horizon > 2


@dataclass(frozen=True)
class Growth:
    """The growth of the gradient of S over a program at the initial weights."""

    per_window: float
    windows: int
    total: float

    def message(self, blocks: int, passes: int) -> str:
        """The growth, and what can be done about it."""
        scale = residual_scale(blocks, passes)
        return (
            f"the gradient of the fast weights grows {self.per_window:.3g} times a window over {self.windows} windows "
            f"({self.total:.1e} times in all), and training will probably go the wrong way; see docs/depth.md: "
            f"model.residual_scale={scale:.2g} is the remedy of the deep recipes; sleep.loop.feedback=embeddings, looping few "
            "blocks in the middle (sleep.loop.layers), sleep.gradient.windows=1 and sleep.gradient.clip_state also bound it"
        )


def residual_scale(blocks: int, passes: int) -> float:
    """The `model.residual_scale` with which the gradient does not grow at the start (docs/depth.md)."""
    return (2 * blocks * passes) ** -0.75


def looped_blocks(sleep: Sleep, depth: int) -> int:
    """The number of looped blocks in a stack of `depth` blocks."""
    first, stop = loop_range(sleep, depth)
    return stop - first


def depth_note(job: Job, program: Program) -> str | None:
    """What a plan says about a deep recurrence whose branches are not scaled down; None for all other recipes."""
    blocks, passes = looped_blocks(job.sleep, len(job.model.pattern)), job.sleep.max_passes
    scale = residual_scale(blocks, passes)
    if blocks < DEEP or job.model.residual_scale <= 2 * scale or not can_explode(job.sleep, program):
        return None
    return (
        f"{passes} passes over {blocks} blocks and {program.windows} windows are a deep recurrence, whose gradient may explode with "
        f"model.residual_scale = {job.model.residual_scale:g}; docs/depth.md recommends {scale:.2g}. `sleeptrain train` measures "
        "the growth before its first step"
    )


def growth_at_start(context: StepContext, seed: int) -> Growth | None:
    """Run forward and backward of one micro-batch of random tokens and measure the growth; weights and data stay as they are.

    A collective over all ranks. None where the program has too few windows to measure. Not for ZeRO 3, which cannot take
    gradients without accumulating them.
    """
    layout, model = context.layout, context.model
    program, device = layout.program(), context.engine.process.device
    vocab = layout.job.model.vocab
    assert vocab is not None
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (layout.batch.micro, layout.windows[-1].stop), generator=generator).to(device)
    targets = tokens.roll(-1, 1)
    for window in layout.windows:
        if not window.targets:
            targets[:, window.start : window.stop] = -100
    state = model.zero_state(layout.job.sleep, layout.batch.micro)
    outputs = context.forward(model, [MicroBatch(tokens, targets, state)] * layout.batch.group, program)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.autograd.grad(torch.stack([output.nll.sum() for output in outputs]).sum(), weights, allow_unused=True)
    squares = sum_over_ranks(torch.stack([output.adjoint.squares(device) for output in outputs]).sum(0))
    norms = squares.sqrt().tolist()
    factor = growth(norms)
    return None if factor is None else Growth(factor, program.windows, norms[0] / norms[-1])
