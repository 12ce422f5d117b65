"""The eager interpreter of a program: windows, passes and eviction in plain order. The readable reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sleeptrain.model.language import LanguageModel, cross_entropy
from sleeptrain.model.stack import Around, plainly
from sleeptrain.model.state import State
from sleeptrain.program import Boundary, Pass, Program, Sleep, blocks_of


@dataclass(frozen=True)
class RecomputeWrappers:
    """What is kept for backward: how the work of a window, of a pass, of a block and of the head are called."""

    window: Around = plainly
    passes: Around = plainly
    block: Around = plainly
    head: Around = plainly


KEEP_ALL = RecomputeWrappers()
"""Plain autograd."""


@dataclass(frozen=True)
class ProgramOutput:
    """What a program leaves behind."""

    nll: Tensor
    """Negative log likelihood in nats [batch, time], 0 where nothing was scored."""
    state: State
    residual: Tensor
    """||h_n - h_{n-1}|| / ||h_{n-1}|| of each pass after a window's first, in program order; no gradient."""
    predicted: Tensor | None
    """The likeliest next token [batch, time] where a window was scored, else -1; only when asked for."""


def run(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State, program: Program, sleep: Sleep,
    *, valid: Tensor | None = None, recompute: RecomputeWrappers = KEEP_ALL, predict: bool = False,
) -> ProgramOutput:  # fmt: skip
    """Run `program` over a batch: `tokens`, `targets` [batch, time] (-100: not scored), from `state`.

    `valid` [batch, time] marks real tokens; None means that all are. Gradients flow through windows and passes wherever
    the program does not cut them (arXiv 2605.26099, Algorithm 1).
    """
    nlls, residuals, guesses = [], [], []
    for passes, boundary in program.by_window():
        part = slice(passes[0].start, passes[0].stop)
        seen = None if valid is None else valid[:, part]
        # What is called again in backward holds no tensor of its own: those would stay whatever the policy says.
        form = state.hollow()
        work = partial(run_window, model, passes, boundary, sleep, program.span, form, recompute, predict, None, None)
        nll, residual, guess, *flat = recompute.window(work, tokens[:, part], targets[:, part], seen, *state.flat())
        state = state.unflat(flat)
        nlls.append(nll)
        residuals.append(residual)
        guesses.append(guess)
    predicted = torch.cat(guesses, 1) if predict else None
    return ProgramOutput(torch.cat(nlls, 1), state, torch.cat(residuals), predicted)


def run_window(
    model: LanguageModel, passes: Sequence[Pass], boundary: Boundary | None, sleep: Sleep, span: int, spec: State,
    recompute: RecomputeWrappers, predict: bool, above: Tensor | None, exit_: Tensor | None,
    tokens: Tensor, targets: Tensor, valid: Tensor | None, *flat: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Passes over one window and the eviction after it: (nll, residuals, predictions, *state).

    `above` and `exit_` are the features that entered and left the looped range in an earlier pass, where `passes` does
    not begin with the first one.
    """
    state, depth = spec.unflat(flat), len(model.layers)
    nll = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
    guess = torch.full_like(tokens, -1)
    residuals: list[Tensor] = []
    for op in passes:
        if op.detach:
            state = state.detach()
            above, exit_ = (h if h is None else h.detach() for h in (above, exit_))
        h = {"tokens": None, "above": above}.get(op.reads, exit_)
        blocks, form = blocks_of(op.layers, sleep, depth), state.hollow()
        work = partial(run_pass, model, op, blocks, span, form, recompute.block, tokens, valid)
        with nullcontext() if op.grad else torch.no_grad():
            h, *left = recompute.passes(work, h, *state.flat())
            if op.loss:
                nll, best = recompute.head(partial(score, model, predict), h, targets)
                guess = best if predict else guess
        state = state.unflat(left)
        if op.layers == "prelude":
            above = h
        elif op.layers == "loop":
            if exit_ is not None:
                residuals.append(model.relative_change(h.detach(), exit_.detach()))
            exit_ = h
    if boundary is not None:
        state = state.evict(boundary)
    residual = torch.stack(residuals) if residuals else torch.zeros(0, device=tokens.device)
    return nll, residual, guess, *state.flat()


def run_pass(
    model: LanguageModel, op: Pass, blocks: tuple[int, int], span: int, spec: State, around: Around,
    tokens: Tensor, valid: Tensor | None, h: Tensor | None, *flat: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One pass over one window, from its inputs to its outputs, as a function of tensors alone."""
    if h is None:
        h = model.embed(tokens)
    elif op.reads == "normed":
        h = model.norm(h)
    h, state = model.layers(h, spec.unflat(flat).cross("pass"), op, blocks, span, valid, around)
    return h, *state.flat()


def score(model: LanguageModel, predict: bool, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Losses of the targets from the features of a pass, and the likeliest token at every position if asked for."""
    if not predict:
        return model.nll(h, targets), None
    logits = model.logits(h)
    return cross_entropy(logits, targets), logits.detach().argmax(-1)
