"""Sums over programs of the partial gradients that Triton kernels leave, in one launch and in a fixed order."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import round_to

# Columns of a program and rows that it reads at once: rows of 128 bytes, and as many programs as narrow gradients allow.
COLUMNS, ROWS = 32, 64


@kernel(do_not_specialize=["count", "width"])
def partial_sums_kernel(partial, total, count, width, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """One program per COLUMNS columns of partial [count, width] float32; writes total [width]."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (at < width)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        sums += tl.load(partial + row.to(tl.int64) * width + at[None, :], mask=inside & (row < count), other=0.0)
    tl.store(total + at, round_to(tl.sum(sums, 0), total.dtype.element_ty), mask=at < width)


def partial_sums(partial: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of `weights`, each with its shape and dtype, from partial sums.

    partial: [programs, elements of all weights] float32, contiguous, with the weights side by side.
    Sums in float32 and rounds once. Gradients of one dtype share their memory.
    """
    dtypes = {weight.dtype for weight in weights}
    count, width = partial.shape
    total = partial.new_empty(width, dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32)
    partial_sums_kernel[(triton.cdiv(width, COLUMNS),)](
        partial, total, count, width, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=4, num_stages=1
    )
    parts = total.split([weight.numel() for weight in weights])
    return [part.view(weight.shape).to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]
