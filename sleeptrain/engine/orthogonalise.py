"""Newton-Schulz iteration over batches of matrices of one shape: how many there are in a batch, their work, and its memory."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the quintic iteration x -> (a + b s + c s^2) x with s = x x^T (Jordan et al. 2024, Muon): of maximum slope at
zero; singular values end between about 0.7 and 1.2."""
BATCH = 2**27
"""Elements of a batch, unless one matrix has more: 32 matrices of 2048 x 2048, of which a product takes 0.7 ms on an H200, so that its
launch costs nothing, and whose temporaries take 1 GiB in bf16."""


def orthogonalise(batch: Tensor, steps: int = 5, scale: float = 1.0) -> Tensor:
    """The nearest semi-orthogonal matrix to each of `batch` [n, rows, cols], times `scale`, in the dtype of `batch`.

    `batch` is overwritten. Matrices are divided by their Frobenius norms first, so they may have any size.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = COEFFICIENTS
    n, rows, cols = batch.shape
    side = min(rows, cols)
    # A norm of bf16 matrices in fp32. Of wider dtypes in their own.
    wide = torch.promote_types(batch.dtype, torch.float32)
    batch.div_(torch.linalg.vector_norm(batch, dim=(1, 2), keepdim=True, dtype=wide).clamp_(min=1e-7))
    x, other = batch, torch.empty_like(batch)
    gram, square = batch.new_empty(n, side, side), batch.new_empty(n, side, side)
    for step in range(steps):
        # a + b s + c s^2 = c (s + b/2c)^2 + (a - b^2/4c), so that products and two diagonals are all there is. Sums of matrices would cost
        # a copy each: on a GPU torch copies the first argument of baddbmm into the result. In bf16 rounding moves the result of either
        # form by 2 to 4 %; the iteration itself ends 20 % away from the semi-orthogonal matrix.
        torch.bmm(*((x, x.mT) if rows <= cols else (x.mT, x)), out=gram)
        gram.diagonal(dim1=1, dim2=2).add_(b / (2 * c))
        square.baddbmm_(gram, gram, beta=0, alpha=c)
        square.diagonal(dim1=1, dim2=2).add_(a - b * b / (4 * c))
        factors = (square, x) if rows <= cols else (x, square)
        other.baddbmm_(*factors, beta=0, alpha=scale if step == steps - 1 else 1.0)
        x, other = other, x
    return x


def batch_sizes(count: int, rows: int, cols: int) -> list[int]:
    """Sizes of the batches of `count` matrices [rows, cols]: as few and as equal as BATCH allows."""
    batches = -(-count // max(1, BATCH // (rows * cols)))
    return [count // batches + (i < count % batches) for i in range(batches)]


def batch_elements(n: int, rows: int, cols: int) -> int:
    """Elements of the memory that a batch takes while `orthogonalise` runs, itself included."""
    return 2 * n * (rows * cols + min(rows, cols) ** 2)
