"""The adjoint of the fast weights at the boundaries between windows: its norm, and clipping.

S is the only way from window to window, so that these gradients show whether back-propagation through windows explodes
(docs/depth.md). `gradient.clip_state` bounds them, as gradient clipping inside a recurrent network does (arXiv 1308.0850).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sleeptrain.model.language import IGNORED
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import Leaf, State
from sleeptrain.program import Program


class StateAdjoint:
    """The gradient of a micro-batch's loss with respect to S after every window, filled by its backward.

    With `clip_state`, the gradient of every row, layer and head is shortened to `clip_state` times the row's share of the
    loss: where the loss is a mean over targets, this bounds the gradient of the row's own mean loss, whatever the number of
    rows, micro-batches and processes.
    """

    def __init__(self, batch: MicroBatch, program: Program) -> None:
        self.windows = program.windows
        self._squares: Tensor | None = None
        self._limit: Tensor | None = None
        """The largest norm of a head's gradient, by row."""
        if program.clip_state is not None:
            scored = (batch.targets != IGNORED).sum(1, dtype=torch.float64)
            self._limit = program.clip_state * batch.loss_scale * scored

    def at_boundary(self, window: int, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Measure the gradients of the fast leaves [rows, heads, d_k, d_v] after `window`, and return them clipped."""
        norms = {name: torch.linalg.vector_norm(d, dim=(-2, -1), dtype=torch.float64) for name, d in gradients.items()}
        for norm in norms.values():
            self._squares = norm.new_zeros(self.windows - 1) if self._squares is None else self._squares
            self._squares[window] += norm.square().sum()
        if self._limit is None:
            return dict(gradients)
        limit = self._limit[:, None]
        factors = {name: (limit / norm.clamp_min(1e-300)).clamp(max=1.0) for name, norm in norms.items()}
        return {name: d * factors[name][..., None, None].to(d.dtype) for name, d in gradients.items()}

    def squares(self, device: torch.device) -> Tensor:
        """Squared norms [windows - 1] after every window but the last, over rows and layers, before clipping, float64."""
        zeros = torch.zeros(self.windows - 1, dtype=torch.float64, device=device)
        return zeros if self._squares is None else self._squares

    def watch(self, state: State, window: int) -> State:
        """The state after `window`, whose fast leaves call `at_boundary` in an autograd backward."""
        names = [leaf.name for leaf in state.spec if leaf.kind == "fast" and state[leaf.name].requires_grad]
        if not names:
            return state
        watched = _Boundary.apply(self, window, names, *(state[name] for name in names))
        return state.replace(dict(zip(names, watched, strict=True)))


def fast_leaves(spec: tuple[Leaf, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fast leaves among `tensors`."""
    return {leaf.name: tensors[leaf.name] for leaf in spec if leaf.kind == "fast" and leaf.name in tensors}


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adjoint: StateAdjoint, window: int, names: list[str], *fast: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint, ctx.window, ctx.names = adjoint, window, names
        return tuple(tensor.view_as(tensor) for tensor in fast)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        clipped = ctx.adjoint.at_boundary(ctx.window, dict(zip(ctx.names, gradients, strict=True)))
        return None, None, None, *(clipped[name] for name in ctx.names)
