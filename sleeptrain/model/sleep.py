"""The eager interpreter of a program: windows, passes and eviction in program order, differentiated by plain autograd.

This is the readable reference for the semantics of sleep (arXiv 2605.26099, Algorithm 1). Evaluation and ZeRO-3 training
run it; the executor in `sleeptrain.execute` is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sleeptrain.model.language import LanguageModel, cross_entropy
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.stack import CallWrapper, call_directly
from sleeptrain.model.state import Leaf, State
from sleeptrain.model.state_adjoint import StateAdjoint
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Boundary, Pass, Program, Sleep, blocks_of


@dataclass(frozen=True)
class RecomputeWrappers:
    """How windows, passes, blocks and the head are called; a wrapper that checkpoints a call saves only its inputs."""

    window: CallWrapper = call_directly
    passes: CallWrapper = call_directly
    block: CallWrapper = call_directly
    head: CallWrapper = call_directly


Prediction = Literal["tokens", "logits"] | None
KEEP_ALL = RecomputeWrappers()
"""Plain autograd: every activation is saved."""


@dataclass(frozen=True)
class ProgramOutput:
    """The results of a program over one micro-batch."""

    nll: Tensor
    """Negative log likelihood in nats [rows, length], 0 at positions that are not scored."""
    state: State
    """The state after the last window."""
    residual: Tensor
    """||h_n - h_{n-1}|| / ||h_{n-1}|| [passes, rows] of every pass but a window's first, in program order, over the tokens that
    the pass reads; NaN where a row's window is padding only. No gradient."""
    predicted: Tensor | None
    """By `predict`: the likeliest next token [rows, length] in windows that are scored, -1 elsewhere, and then losses have no
    gradient; or the logits of the tokens of scored windows [rows, tokens, vocab]; or None."""
    adjoint: StateAdjoint
    """The gradient of S between windows, known after backward."""


@dataclass(frozen=True)
class LoopFeatures:
    """Features at both ends of the looped range of blocks in the newest pass over a window."""

    entry: Tensor | None = None
    """What the prelude returned; None without a prelude or before it ran."""
    exit: Tensor | None = None
    """What the looped range returned; None before pass 1."""

    def detach(self) -> LoopFeatures:
        """The same features, cut from the graph."""
        return LoopFeatures(*(h if h is None else h.detach() for h in (self.entry, self.exit)))


WINDOW_START = LoopFeatures()


@dataclass(frozen=True)
class RunContext:
    """What all windows and passes of a run share.

    It must not hold activations: a checkpointed call keeps it alive until backward, whatever the policy saves. Those are
    passed as positional arguments, which torch's checkpoint saves.
    """

    model: LanguageModel
    sleep: Sleep
    span: int
    """The number of keys that a query sees at most."""
    spec: tuple[Leaf, ...]
    """The leaves of the state, in the order in which their tensors are passed."""
    recompute: RecomputeWrappers = KEEP_ALL
    predict: Prediction = None
    """What of the predictions in scored windows is returned."""
    adjoint: StateAdjoint | None = None
    """Measures and clips the gradient of S between windows."""

    def state(self, tensors: Sequence[Tensor]) -> State:
        """The state with these tensors, the inverse of `State.flat`."""
        return State(self.spec, {}).unflat(tensors)


def run(
    model: LanguageModel, batch: MicroBatch, program: Program, sleep: Sleep,
    *, recompute: RecomputeWrappers = KEEP_ALL, predict: Prediction = None,
) -> ProgramOutput:  # fmt: skip
    """Run `program` over a micro-batch.

    Gradients flow through windows and passes, except where the program detaches.
    """
    adjoint = StateAdjoint(batch, program)
    context = RunContext(model, sleep, program.span, batch.state.spec, recompute, predict, adjoint)
    nlls, residuals, predictions, state = [], [], [], batch.state
    for passes, boundary in program.by_window():
        tokens, targets, mask = batch.window(passes[0])
        window = partial(run_window, context, passes, boundary)
        nll, residual, predicted, *tensors = recompute.window(window, tokens, targets, mask, *state.flat())
        state = context.state(tensors)
        nlls.append(nll)
        residuals.append(residual)
        predictions.append(predicted)
    predicted = torch.cat(predictions, 1) if predict else None
    return ProgramOutput(torch.cat(nlls, 1), state, torch.cat(residuals), predicted, adjoint)


def run_window(
    context: RunContext, passes: Sequence[Pass], boundary: Boundary | None,
    tokens: Tensor, targets: Tensor, mask: TokenMask, *state_tensors: Tensor, loop: LoopFeatures = WINDOW_START,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All passes over one window, then eviction: (nll, residuals, predictions, *state).

    `mask` is that of pass 1. `loop` holds the features of the pass before the first one of `passes`, where that is not pass 1.
    """
    model, recompute, state = context.model, context.recompute, context.state(state_tensors)
    nll = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
    empty = tokens.new_zeros(tokens.shape[0], 0, model.config.vocab or 0)
    predicted = empty if context.predict == "logits" else torch.full_like(tokens, -1)
    residuals: list[Tensor] = []
    for op in passes:
        if op.detach:
            state, loop = state.detach(), loop.detach()
        h = {"tokens": None, "above": loop.entry}.get(op.reads, loop.exit)
        visible = mask.in_pass(op)
        with nullcontext() if op.grad else torch.no_grad():
            h, *after = recompute.passes(partial(run_pass, context, op), tokens, visible, h, *state.flat())
            if op.loss:
                nll, best = recompute.head(partial(score, model, context.predict), h, targets)
                predicted = predicted if best is None else best
        state = context.state(after)
        if op.layers == "prelude":
            loop = replace(loop, entry=h)
        elif op.layers == "loop":
            if loop.exit is not None:
                residuals.append(model.relative_change(h.detach(), loop.exit.detach(), visible.read))
            loop = replace(loop, exit=h)
    if boundary is not None:
        state = state.evict(boundary)
        state = state if context.adjoint is None else context.adjoint.watch(state, boundary.window)
    residual = torch.stack(residuals) if residuals else torch.zeros(0, tokens.shape[0], device=tokens.device)
    return nll, residual, predicted, *state.flat()


def run_pass(
    context: RunContext, op: Pass, tokens: Tensor, mask: TokenMask, h: Tensor | None, *state_tensors: Tensor
) -> tuple[Tensor, ...]:
    """One pass over one window: (features, *state). `h` are the features that it reads, None where it embeds tokens; `mask` is
    that of this pass."""
    model, blocks = context.model, blocks_of(op.layers, context.sleep, len(context.model.layers))
    if h is None:
        h = model.embed(tokens)
    elif op.reads == "normed":
        h = model.norm(h)
    elif op.reads == "gated":
        assert model.feedback is not None
        h = model.feedback(model.embed(tokens), h)
    state = context.state(state_tensors).cross("pass")
    h, state = model.layers(h, state, op, blocks, context.span, mask, context.recompute.block)
    return h, *state.flat()


def score(model: LanguageModel, predict: Prediction, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """The losses of the targets from the features of a pass, and the likeliest token or the logits at every position."""
    if predict is None:
        return model.nll(h, targets), None
    if predict == "tokens":
        return model.predict(h, targets)
    logits = model.logits(h)
    return cross_entropy(logits, targets), logits
