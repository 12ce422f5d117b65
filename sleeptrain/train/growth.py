"""How fast the gradient of the fast weights grows from window to window: from a step's measurements, and before step one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from sleeptrain.model.language import IGNORED
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Program, Sleep, loop_range
from sleeptrain.train.job import Job
from sleeptrain.train.step import StepContext, sum_over_ranks

EXPLODING = 100.0
"""A growth over all windows that is reported as an explosion."""
DEEP = 8
"""Looped blocks from which a plan mentions the growth; four blocks train without a remedy."""


def growth(norms: Sequence[float]) -> float | None:
    """The mean factor by which the gradient of S grows from one window to the window before it.

    `norms` are those after every window but the last. Only the chain before the first 0 counts: where the state is detached,
    the next window begins another one. None for fewer than two norms in the chain.
    """
    chain = _chain(norms)
    return (chain[0] / chain[-1]) ** (1 / (len(chain) - 1)) if len(chain) > 1 else None


def _chain(norms: Sequence[float]) -> list[float]:
    return list(takewhile(lambda norm: norm != 0, norms))


def can_explode(sleep: Sleep, program: Program) -> bool:
    """Whether features and S form a full recurrence over windows, whose gradient explodes in deep stacks (docs/depth.md).

    Passes must read features of the pass before, and gradients cross two boundaries between sleeping windows or more.
    """
    truncated = sleep.gradient.passes != "all" and sleep.gradient.passes < program.passes
    horizon = program.windows if sleep.gradient.windows == "all" else min(sleep.gradient.windows, program.windows)
    return program.passes > 1 and sleep.loop.feedback != "embeddings" and not truncated and horizon > 2


@dataclass(frozen=True)
class Growth:
    """The growth of the gradient of S over a program at the initial weights."""

    per_window: float
    windows: int
    total: float
    """From the last window that the gradient crosses to the first."""

    @property
    def explodes(self) -> bool:
        """Whether it is worth a warning; a growth that overflowed to infinity or NaN is."""
        return not self.total <= EXPLODING

    def message(self, blocks: int, passes: int) -> str:
        """The growth, and what can be done about it."""
        scale = residual_scale(blocks, passes)
        return (
            f"the gradient of the fast weights grows {self.per_window:.3g} times a window over {self.windows} windows "
            f"({self.total:.1e} times in all), and training may go the wrong way; see docs/depth.md: "
            f"model.residual_scale={scale:.2g} keeps it from growing at the start; sleep.loop.feedback=embeddings, looping few "
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
    program, device = layout.program_of_rows_alone(), context.engine.process.device
    vocab = layout.job.model.vocab
    assert vocab is not None
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (layout.batch.micro, layout.windows[-1].stop), generator=generator).to(device)
    targets = tokens.roll(-1, 1)
    for window in layout.windows:
        if not window.targets:
            targets[:, window.start : window.stop] = IGNORED
    state = model.zero_state(layout.job.sleep, layout.batch.micro)
    outputs = context.forward(model, [MicroBatch(tokens, targets, state)] * layout.batch.group, program)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.autograd.grad(torch.stack([output.nll.sum() for output in outputs]).sum(), weights, allow_unused=True)
    context.engine.drop_gradients()
    squares = sum_over_ranks(torch.stack([output.adjoint.squares(device) for output in outputs]).sum(0))
    norms = squares.sqrt().tolist()
    factor, chain = growth(norms), _chain(norms)
    return None if factor is None else Growth(factor, program.windows, chain[0] / chain[-1])
