"""Collectives of the tensor axis that torch.compile traces into the graphs of blocks, forward and backward.

Those of megatron-core work in place, which torch.compile cannot trace. Forward and backward are the same as theirs: replicate and reduce
of tensor parallelism (arXiv 1909.08053), gather and scatter of sequence parallelism (arXiv 2205.05198).
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import _functional_collectives as functional

TIME = 1
"""The dimension of tokens in features [batch, time, width]."""


def replicate(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`x`, which every process has; backward sums its gradient over the group."""
    result: Tensor = _Replicate.apply(x, group)
    return result


def reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of `x` over the group; backward passes its gradient, which every process has."""
    result: Tensor = _Reduce.apply(x, group)
    return result


def gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All-gathers token slices [batch, time / size, width] to [batch, time, width]; its backward is a reduce-scatter."""
    result: Tensor = _Gather.apply(x, group)
    return result


def scatter_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This process's token slice of the sum of `x` [batch, time, width] over the group; its backward is an all-gather."""
    result: Tensor = _Scatter.apply(x, group)
    return result


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return functional.all_reduce(x.contiguous(), "sum", group)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return functional.all_gather_tensor(x.contiguous(), TIME, group)


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return functional.reduce_scatter_tensor(x.contiguous(), "sum", TIME, group)


class _Replicate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient, ctx.group), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(gradient, ctx.group), None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_gather(gradient, ctx.group), None
