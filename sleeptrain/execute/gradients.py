"""Gradient accumulation: the gradients of all uses of a weight, summed in float32, in the engine's buffers if it has some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.model.compile_blocks import compiled_function, or_uncompiled

Accumulate = Callable[[list[Tensor], list[Tensor]], Any]
"""Adds to every one of some tensors, in place, the gradient of another list at its place."""


def accumulate(totals: list[Tensor], gradients: list[Tensor]) -> None:
    """Add gradients to float32 totals in place. Of bf16 gradients a GPU launches one kernel each, unless this is compiled."""
    torch._foreach_add_(totals, gradients)


def compiled_accumulate(backend: Any = "inductor", *, required: bool = True) -> Accumulate:
    """`accumulate` compiled by a backend of torch.compile: one kernel for all weights of a block, of any dtypes.

    Where it cannot be compiled, a call raises what torch raises, or, unless it is `required`, adds uncompiled after a warning.
    """
    compiled = compiled_function(accumulate, backend, dynamic=False)
    return compiled if required else or_uncompiled(compiled, accumulate, "the accumulation of gradients")


class GradAccumulator:
    """Sums the gradients of weights over all their uses in float32, or in the weight's own dtype if that is wider.

    A bf16 sum over 64 uses is wrong by about 1 %, over 1,024 uses by 4 %; a float32 sum is as exact as a single use.
    """

    def __init__(
        self, buffers: Mapping[Tensor, Tensor] = MappingProxyType({}), partial: Iterable[Tensor] = (),
        accumulate: Accumulate = accumulate,
    ) -> None:  # fmt: skip
        """
        buffers     by weight, a float32 tensor of its shape that gradients are added to; the engine reduces and clears it
        partial     weights whose gradients are partial sums: they are accumulated apart, and added to their buffers by `take`
        accumulate  adds gradients to their sums
        """
        self._buffers, self._accumulate = buffers, accumulate
        own = set(partial)
        self._direct = {weight: buffer for weight, buffer in buffers.items() if weight not in own}
        self._grads: dict[Tensor, Tensor] = dict(self._direct)

    def add(self, gradients: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """Add the gradients of one use of different weights."""
        known = [(self._grads[weight], gradient) for weight, gradient in gradients if weight in self._grads]
        for weight, gradient in gradients:
            if weight not in self._grads:
                self._grads[weight] = gradient.to(_sum_dtype(weight), copy=True)
        self._add_in_place(known)

    def _add_in_place(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if pairs:
            self._accumulate([total for total, _ in pairs], [gradient for _, gradient in pairs])

    def of(self, weight: Tensor) -> Tensor:
        """The accumulated gradient itself, which may be written in place; zeros for a weight without uses.

        That of a weight with a buffer, unless it is partial, includes earlier backwards of the step.
        """
        if weight not in self._grads:
            self._grads[weight] = torch.zeros_like(weight, dtype=_sum_dtype(weight))
        return self._grads[weight]

    def take(self, weight: nn.Parameter) -> Tensor | None:
        """Remove the accumulated gradient and return it in the weight's dtype; zeros for a weight without uses.

        None for a weight with a buffer, which has it then.
        """
        if weight in self._direct:
            return None
        total = self._grads.pop(weight, None)
        if weight not in self._buffers:
            return torch.zeros_like(weight) if total is None else total.to(weight.dtype)
        if total is not None:
            self._buffers[weight].add_(total)
        return None


class StaticGradAccumulator(GradAccumulator):
    """Accumulates in buffers whose addresses never change, so that CUDA graphs can add to them; zero between steps."""

    def __init__(
        self, buffers: Mapping[Tensor, Tensor] = MappingProxyType({}), partial: Iterable[Tensor] = (),
        accumulate: Accumulate = accumulate,
    ) -> None:  # fmt: skip
        super().__init__(buffers, partial, accumulate)
        self._originals: Mapping[Tensor, Tensor] = {}

    def add(self, gradients: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """Add the gradients of one use of different weights."""
        self._add_in_place([(self.of(self._originals.get(weight, weight)), each) for weight, each in gradients])

    def take(self, weight: nn.Parameter) -> Tensor | None:
        """A copy of the accumulated gradient in the weight's dtype; what it was accumulated in is set to zero.

        None for a weight with a buffer of the engine, which has it then.
        """
        if weight in self._direct:
            return None
        total, taken = self.of(weight), None
        if weight in self._buffers:
            self._buffers[weight].add_(total)
        else:
            taken = total.to(weight.dtype, copy=True)
        total.zero_()
        return taken

    @property
    def by_weight(self) -> Mapping[Tensor, Tensor]:
        """The accumulated gradients by weight."""
        return self._grads

    @contextmanager
    def aliased_as(self, originals: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Within this context, gradients of aliases are added to the gradients of the weights in `originals`."""
        self._originals = originals
        try:
            yield
        finally:
            self._originals = {}

    def snapshot(self, device: torch.device | None = None) -> dict[Tensor, Tensor]:
        """A copy of the accumulated gradients on `device`, by default in host memory."""
        return {weight: total.to(device or "cpu", copy=True) for weight, total in self._grads.items()}

    def restore(self, snapshot: Mapping[Tensor, Tensor]) -> None:
        """Overwrite the accumulated gradients with a snapshot; weights that are not in it get zeros."""
        for weight, total in self._grads.items():
            total.copy_(snapshot[weight]) if weight in snapshot else total.zero_()


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients; None means zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
