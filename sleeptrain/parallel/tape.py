"""The tape: one autograd function over the parameters, which keeps what a policy says and recomputes the rest.

Plain autograd over the unrolled program sums the uses of a bf16 weight in bf16, keeps every activation, and cannot be cut
at the stages of a pipeline. Here the program runs without a graph; backward walks it in reverse, differentiates one unit
after the other, sums each weight's gradients in a type of its own, and returns each parameter's gradient once, so that
whoever watches gradients arrive (ZeRO does) sees each of them once, and complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result, moved
from sleeptrain.parallel.shelf import Bytes, Shelf
from sleeptrain.parallel.sums import Sums, plus
from sleeptrain.parallel.track import Policy, Track
from sleeptrain.parallel.units import Rows
from sleeptrain.program import Pass, Program, Sleep, blocks_of


class Tape:
    """A program over micro-batches, run once and taken back once, on one process that holds all blocks."""

    def __init__(
        self, model: LanguageModel, group: Sequence[Rows], program: Program, sleep: Sleep, policy: Policy = "none", *,
        offload: bool = False, sum_dtype: torch.dtype = torch.float32, add_up: Callable[[Sums], None] | None = None,
    ) -> None:  # fmt: skip
        """`add_up` completes the sums of gradients, once, before they are handed out."""
        self.model, self.sums, self.add_up = model, Sums(sum_dtype), add_up
        shelf, depth = Shelf(offload), len(model.layers)
        self.walks = [
            Walk(Track(model, rows, program.span, shelf, self.sums), program, sleep, depth, policy) for rows in group
        ]

    def run(self) -> list[Result]:
        """Run the program over every micro-batch. Gradients flow back from the `nll` of the results, all in one call of
        `backward`; they reach the parameters, not the states that were given."""
        nlls = _OverParameters.apply(self, *self.model.parameters())
        return [walk.result(nll) for walk, nll in zip(self.walks, nlls, strict=True)]

    def bytes(self) -> dict[str, int]:
        """What is kept for backward at this moment, in bytes, by component: h, S, conv, kv and body (graphs)."""
        given = [t for walk in self.walks for t in (walk.track.rows.tokens, walk.track.rows.targets)]
        total = Bytes([*self.model.parameters(), *given])
        for walk in self.walks:
            walk.track.count(total)
        return total.by_component


class _OverParameters(torch.autograd.Function):
    """From parameters to losses."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *weights: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.tape, ctx.weights = tape, weights
        ctx.set_materialize_grads(False)
        return tuple(walk.forward() for walk in tape.walks)

    @staticmethod
    def backward(ctx: Any, *d_nlls: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, ctx.tape = ctx.tape, None
        if tape is None:
            raise RuntimeError("a tape goes back once; run the program again")
        while tape.walks:
            tape.walks.pop().backward(d_nlls[len(tape.walks)])
        if tape.add_up is not None:
            tape.add_up(tape.sums)
        return None, *(tape.sums.take(w) if w.requires_grad else None for w in ctx.weights)


class Walk:
    """A micro-batch's way through the whole program: which features each pass reads, and where their adjoints go."""

    def __init__(self, track: Track, program: Program, sleep: Sleep, depth: int, policy: Policy) -> None:
        self.track, self.program, self.policy = track, program, policy
        self.blocks = {op: blocks_of(op.layers, sleep, depth) for op in program.ops if isinstance(op, Pass)}
        self.residuals: list[Tensor] = []
        self.above: Tensor | None = None
        self.exit: Tensor | None = None
        self.d_above: Tensor | None = None
        self.d_exit: Tensor | None = None

    def forward(self) -> Tensor:
        """Run everything: the losses in nats [rows, length], 0 where nothing was scored."""
        rows, track = self.track.rows, self.track
        wide = torch.promote_types(track.model.embed.weight.dtype, torch.float32)
        nll = torch.zeros(rows.tokens.shape, dtype=wide, device=rows.tokens.device)
        for passes, boundary in self.program.by_window():
            keep = self.policy if self.policy != "window" else None
            if keep is None:
                track.note_window(passes[0])
            for op in passes:
                before, out = self.exit, self.advance(op, keep)
                if op.loss:
                    nll[:, op.start : op.stop] = track.score(op, out, keep)
                if op.layers == "loop" and op.index > 1 and before is not None:
                    self.residuals.append(moved(out, before))
            self.above = self.exit = None
            if boundary is not None:
                track.evict(boundary)
        return nll

    def result(self, nll: Tensor) -> Result:
        """What the program left behind, with this loss."""
        residual = torch.stack(self.residuals) if self.residuals else torch.zeros(0, device=nll.device)
        return Result(nll, self.track.state, residual, None)

    def advance(self, op: Pass, keep: Policy | None) -> Tensor:
        """Run one pass on the features that it reads, and put down those that leave it for the next."""
        out = self.track.forward(op, self.blocks[op], self.entering(op), keep)
        if op.layers == "prelude":
            self.above = out
        elif op.layers == "loop":
            self.exit = out
        return out

    def entering(self, op: Pass) -> Tensor | None:
        """The features that a pass reads; None where it reads tokens."""
        return {"tokens": None, "above": self.above}.get(op.reads, self.exit)

    def backward(self, d_nll: Tensor | None) -> None:
        """Back through everything, from the adjoint of the losses."""
        for passes, boundary in reversed(list(self.program.by_window())):
            if boundary is not None:
                self.track.back_from_eviction(boundary)
            if self.policy == "window":
                self.replay(passes, d_nll)
            for op in reversed(passes):
                self.back(op, d_nll)

    def replay(self, passes: Sequence[Pass], d_nll: Tensor | None) -> None:
        """Run a window again from the state that entered it, keeping what enters each of its passes."""
        scored = d_nll is not None and any(op.loss for op in passes)
        self.track.rewind(passes[0])
        if self.track.adjoint or scored:
            for op in passes[:-1]:
                self.advance(op, "pass")
            self.track.note(passes[-1], self.blocks[passes[-1]], self.entering(passes[-1]))
        self.above = self.exit = None

    def back(self, op: Pass, d_nll: Tensor | None) -> None:
        """Back through one pass: take the adjoint of what left it, leave that of what entered it."""
        d_out: Tensor | None = None
        if op.layers == "prelude":
            d_out, self.d_above = self.d_above, None
        elif op.layers == "loop":
            d_out, self.d_exit = self.d_exit, None
        scored = d_nll[:, op.start : op.stop] if op.loss and d_nll is not None else None
        d_h = self.track.back(op, self.blocks[op], d_out, scored)
        if op.detach:
            self.d_above = self.d_exit = None
        elif op.reads == "above":
            self.d_above = plus(self.d_above, d_h)
        elif op.reads != "tokens":
            self.d_exit = plus(self.d_exit, d_h)
