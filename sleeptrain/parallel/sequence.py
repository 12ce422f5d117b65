"""Sequence parallelism: between the layers, processes of the tensor axis share the tokens of a window.

What all of them would hold and work out alike, features and norms, each does for its slice of the tokens (arXiv 2205.05198).
What a layer reads is gathered, and what it adds is summed and scattered: together the traffic of a plain sum.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.parallel.mesh import MeshAxis


def split_tokens(x: Tensor, size: int) -> Tensor:
    """[batch, time, ...] -> [size * batch, time / size, ...], slice after slice: megatron-core scatters the first dimension,
    so that its part for a process is that process's slice of all rows."""
    return x.unflatten(1, (size, -1)).transpose(0, 1).flatten(0, 1)


def join_tokens(x: Tensor, size: int) -> Tensor:
    """The inverse of `cut`."""
    return x.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)


def gather_tokens(x: Tensor, axis: MeshAxis) -> Tensor:
    """Whole windows [batch, time, ...] from everybody's slices, for layers that are divided over the axis; in backward their
    adjoints are summed, and each process gets its slice of the sum."""
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return join_tokens(gather_from_sequence_parallel_region(x, group=axis.group), axis.size)


def full_norms(axis: MeshAxis, *slices: Tensor) -> Tensor:
    """The norms of whole tensors of which every process has a slice, in float64; a collective over the axis."""
    squares = torch.stack([x.float().norm().double().square() for x in slices])
    dist.all_reduce(squares, group=axis.group)
    return squares.sqrt()
