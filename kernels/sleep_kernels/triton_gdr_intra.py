"""Intra-chunk kernel of the gated delta rule in Triton, which runs before those of forward and backward, parallel over all chunks.

Algebra and symbols as in chunked.py. Chunks have 64 tokens; tokens past the end are read as zeros.

    solve_tril     c, the cumulative sum of g, and A = A0 * G, where A0 = (1 + strict_tril(k kappa^T))^-1 contains no gates.
                   A0 is computed in float32 by forward substitution inside 16 x 16 blocks and a block merge. Repeated
                   squaring, (1 - M)(1 + M^2)(1 + M^4)..., would lose all digits for repeated keys.

The gate-free inverse is an idea of QwenLM/FlashQLA (MIT); the code is our own.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, decay_between, log2_decay, matmul, round_to
from sleep_kernels.verified import LaunchConfig

C = tl.constexpr(CHUNK)


class IntraChunk(NamedTuple):
    """Tensors that depend neither on the state nor on the values. n chunks of 64; tokens past the end are included."""

    inverse: Tensor  # [batch, value_heads, n, 64, 64]  A, in the dtype of k
    g_cumsum: Tensor  # [batch, value_heads, n * 64]  c in log2, float32
    beta_fp32: Tensor  # [batch, value_heads, n * 64]  beta, float32


@triton.jit
def _unit_lower_inverses(x0, x1, x2, x3):
    """(1 + x)^-1 of four strictly lower triangular x [16, 16] at once; each step eliminates one column of each."""
    at = tl.arange(0, 16)
    a0 = tl.where(at[:, None] == at[None, :], 1.0, 0.0)
    a1, a2, a3 = a0, a0, a0
    for j in range(15):
        column = at[None, :] == j
        row = at[:, None] == j
        a0 -= _select(x0, column, 1)[:, None] * _select(a0, row, 0)[None, :]
        a1 -= _select(x1, column, 1)[:, None] * _select(a1, row, 0)[None, :]
        a2 -= _select(x2, column, 1)[:, None] * _select(a2, row, 0)[None, :]
        a3 -= _select(x3, column, 1)[:, None] * _select(a3, row, 0)[None, :]
    return a0, a1, a2, a3


@triton.jit
def _select(x, where, axis: tl.constexpr):
    """The row or column of x that `where` marks."""
    return tl.sum(tl.where(where, x, 0.0), axis)


@triton.jit
def _block(x, i: tl.constexpr):
    """Elements 16 i ... 16 i + 15 of x [64]."""
    return tl.sum(tl.where(tl.arange(0, 4)[:, None] == i, tl.reshape(x, (4, 16)), 0.0), 0)


@triton.jit
def _key_rows(k, start, T, H: tl.constexpr, DK: tl.constexpr, at_d):
    """Load k [16, len(at_d)] for the 16 tokens from `start`."""
    t = start + tl.arange(0, 16)
    return tl.load(k + t[:, None] * (H * DK) + at_d[None, :], mask=t[:, None] < T, other=0.0)


@triton.jit
def _store_block(pointer, i: tl.constexpr, j: tl.constexpr, a, c):
    """Store block (i, j) of A = A0 * G; `a` is the block of A0."""
    at = tl.arange(0, 16)
    row, column = i * 16 + at[:, None], j * 16 + at[None, :]
    decay = decay_between(_block(c, i)[:, None], _block(c, j)[None, :], row >= column)
    tl.store(pointer + row * C + column, round_to(a * decay, pointer.dtype.element_ty))


@kernel(do_not_specialize=["T"])
def solve_tril_kernel(
    k, g, beta, inverse, g_cumsum, beta_fp32, T, H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk and value head. Writes inverse, g_cumsum and beta_fp32 of IntraChunk."""
    n = tl.cdiv(T, C)
    chunk = tl.program_id(0) % n
    bh = (tl.program_id(0) // n).to(tl.int64)
    head = bh % HV
    row = bh // HV * T
    start = chunk * C
    t = start + tl.arange(0, C)
    gate = tl.load(g + (row + t) * HV + head, mask=t < T, other=0.0)
    b = tl.load(beta + (row + t) * HV + head, mask=t < T, other=0.0).to(tl.float32)
    c = tl.cumsum(log2_decay(gate), 0)
    tl.store(g_cumsum + bh * n * C + t, c)
    tl.store(beta_fp32 + bh * n * C + t, b)

    k += (row * H + head // (HV // H)) * DK
    x00 = tl.zeros((16, 16), tl.float32)
    x10 = tl.zeros((16, 16), tl.float32)
    x11 = tl.zeros((16, 16), tl.float32)
    x20 = tl.zeros((16, 16), tl.float32)
    x21 = tl.zeros((16, 16), tl.float32)
    x22 = tl.zeros((16, 16), tl.float32)
    x30 = tl.zeros((16, 16), tl.float32)
    x31 = tl.zeros((16, 16), tl.float32)
    x32 = tl.zeros((16, 16), tl.float32)
    x33 = tl.zeros((16, 16), tl.float32)
    for first in range(0, DK, BK):
        at_d = first + tl.arange(0, BK)
        k0 = _key_rows(k, start, T, H, DK, at_d)
        k1 = _key_rows(k, start + 16, T, H, DK, at_d)
        k2 = _key_rows(k, start + 32, T, H, DK, at_d)
        k3 = _key_rows(k, start + 48, T, H, DK, at_d)
        x00 += matmul(k0, tl.trans(k0), PRECISION)
        x10 += matmul(k1, tl.trans(k0), PRECISION)
        x11 += matmul(k1, tl.trans(k1), PRECISION)
        x20 += matmul(k2, tl.trans(k0), PRECISION)
        x21 += matmul(k2, tl.trans(k1), PRECISION)
        x22 += matmul(k2, tl.trans(k2), PRECISION)
        x30 += matmul(k3, tl.trans(k0), PRECISION)
        x31 += matmul(k3, tl.trans(k1), PRECISION)
        x32 += matmul(k3, tl.trans(k2), PRECISION)
        x33 += matmul(k3, tl.trans(k3), PRECISION)
    # Multiply columns by beta; diagonal blocks keep their strictly lower triangle.
    b0, b1, b2, b3 = _block(b, 0)[None, :], _block(b, 1)[None, :], _block(b, 2)[None, :], _block(b, 3)[None, :]
    at = tl.arange(0, 16)
    below = at[:, None] > at[None, :]
    x00, x11 = tl.where(below, x00 * b0, 0.0), tl.where(below, x11 * b1, 0.0)
    x22, x33 = tl.where(below, x22 * b2, 0.0), tl.where(below, x33 * b3, 0.0)
    a00, a11, a22, a33 = _unit_lower_inverses(x00, x11, x22, x33)
    x10, x20, x30 = x10 * b0, x20 * b0, x30 * b0
    x21, x31, x32 = x21 * b1, x31 * b1, x32 * b2
    # Always tf32x3, because every result depends on the inverse.
    a10 = -matmul(a11, matmul(x10, a00, "tf32x3"), "tf32x3")
    a21 = -matmul(a22, matmul(x21, a11, "tf32x3"), "tf32x3")
    a32 = -matmul(a33, matmul(x32, a22, "tf32x3"), "tf32x3")
    a20 = -matmul(a22, matmul(x20, a00, "tf32x3") + matmul(x21, a10, "tf32x3"), "tf32x3")
    a31 = -matmul(a33, matmul(x31, a11, "tf32x3") + matmul(x32, a21, "tf32x3"), "tf32x3")
    x30a = matmul(x30, a00, "tf32x3") + matmul(x31, a10, "tf32x3") + matmul(x32, a20, "tf32x3")
    a30 = -matmul(a33, x30a, "tf32x3")

    inverse += (bh * n + chunk) * C * C
    _store_block(inverse, 0, 0, a00, c)
    _store_block(inverse, 1, 1, a11, c)
    _store_block(inverse, 2, 2, a22, c)
    _store_block(inverse, 3, 3, a33, c)
    _store_block(inverse, 1, 0, a10, c)
    _store_block(inverse, 2, 0, a20, c)
    _store_block(inverse, 3, 0, a30, c)
    _store_block(inverse, 2, 1, a21, c)
    _store_block(inverse, 3, 1, a31, c)
    _store_block(inverse, 3, 2, a32, c)
    wide = tl.arange(0, C)
    above = wide[:, None] // 16 < wide[None, :] // 16
    tile = wide[:, None] * C + wide[None, :]
    tl.store(inverse + tile, tl.zeros((C, C), inverse.dtype.element_ty), mask=above)


def intra_chunk(args: RuleArguments, config: LaunchConfig) -> IntraChunk:
    """Compute the intra-chunk tensors of all chunks; tensors contiguous."""
    k, g, launch = args.k, args.g, config.solve_tril
    batch, time, key_heads, d_k = k.shape
    value_heads, n = g.shape[2], triton.cdiv(time, CHUNK)
    inverse = k.new_empty((batch, value_heads, n, CHUNK, CHUNK))
    g_cumsum = k.new_empty((batch, value_heads, n * CHUNK), dtype=torch.float32)
    intra = IntraChunk(inverse, g_cumsum, torch.empty_like(g_cumsum))
    solve_tril_kernel[(batch * value_heads * n,)](
        k,
        g,
        args.beta,
        *intra,
        time,
        H=key_heads,
        HV=value_heads,
        DK=d_k,
        BK=min(launch.block, d_k),
        PRECISION=config.precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return intra
