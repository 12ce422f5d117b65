"""Sequence parallelism: the tensor axis shards the tokens of a window between the layers (arXiv 2205.05198).

Features and norms between layers, which tensor parallelism alone replicates, exist for a slice of the tokens per process.
The input of a layer is all-gathered and its output is reduce-scattered: together the traffic of one all-reduce.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from sleeptrain.parallel.mesh import MeshAxis


def split_tokens(x: Tensor, size: int) -> Tensor:
    """[batch, time, ...] -> [size * batch, time / size, ...], ordered by token slice first.

    megatron-core scatters dimension 0, so that a process's chunk of the result is its token slice of all rows.
    """
    return x.unflatten(1, (size, -1)).transpose(0, 1).flatten(0, 1)


def join_tokens(x: Tensor, size: int) -> Tensor:
    """The inverse of `split_tokens`: [size * batch, time / size, ...] -> [batch, time, ...]."""
    return x.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)


def gather_tokens(x: Tensor, axis: MeshAxis) -> Tensor:
    """All-gathers token slices [batch, time / size, ...] to [batch, time, ...]; its backward is a reduce-scatter."""
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return join_tokens(gather_from_sequence_parallel_region(x, group=axis.group), axis.size)


def sum_over_slices(partial: Tensor, axis: MeshAxis) -> Tensor:
    """The sum, in place, of what each process computed of its token slice; a collective over the axis."""
    dist.all_reduce(partial, group=axis.group)
    return partial
