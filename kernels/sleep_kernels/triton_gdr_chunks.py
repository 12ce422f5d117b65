"""The gated delta rule in Triton, both directions: what needs neither state nor values, for all chunks at once.

Algebra and symbols as in chunked.py, chunks of 64 tokens, missing tokens at the end read as zeros:

    invert   c, the running sum of g, and A = A0 * G, where A0 = (1 + strict_tril(k kappa^T))^-1 is free of gates. A0 comes
             from substitution inside blocks of 16 and a merge of the blocks, in float32: squaring repeatedly, as in
             (1 - M)(1 + M^2)(1 + M^4)..., loses all digits when keys repeat.
    score    P = scale (q k^T) * G, shared by the sweeps of both directions, whose steps follow one another and so should do
             nothing that could be done before.

The gate-free inverse is an idea of QwenLM/FlashQLA (MIT); the code is our own.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, decay_between, log2_decay, matmul, narrow, split
from sleep_kernels.verified import Plan

C = tl.constexpr(CHUNK)


class Chunks(NamedTuple):
    """What depends neither on the state nor on values; n chunks of 64, so that times past the end are there too."""

    inverse: Tensor  # [batch, value_heads, n, 64, 64]  A, in the dtype of k
    running: Tensor  # [batch, value_heads, n * 64]     c as a power of two, float32
    strength: Tensor  # [batch, value_heads, n * 64]     beta, float32
    scores: Tensor  # [batch, value_heads, n, 64, 64]  P, in the dtype of k
    scores_low: Tensor  # what P loses by that; the same tensor where the dtype is float32, which loses nothing


@triton.jit
def _unit_inverses(x0, x1, x2, x3):
    """(1 + x)^-1 of strictly lower triangular x [16, 16], four side by side; each step removes one column of each."""
    at = tl.arange(0, 16)
    a0 = tl.where(at[:, None] == at[None, :], 1.0, 0.0)
    a1, a2, a3 = a0, a0, a0
    for j in range(15):
        column = at[None, :] == j
        row = at[:, None] == j
        a0 -= _pick(x0, column, 1)[:, None] * _pick(a0, row, 0)[None, :]
        a1 -= _pick(x1, column, 1)[:, None] * _pick(a1, row, 0)[None, :]
        a2 -= _pick(x2, column, 1)[:, None] * _pick(a2, row, 0)[None, :]
        a3 -= _pick(x3, column, 1)[:, None] * _pick(a3, row, 0)[None, :]
    return a0, a1, a2, a3


@triton.jit
def _pick(x, where, axis: tl.constexpr):
    return tl.sum(tl.where(where, x, 0.0), axis)


@triton.jit
def _block(x, i: tl.constexpr):
    """Elements 16 i ... 16 i + 15 of x [64]."""
    return tl.sum(tl.where(tl.arange(0, 4)[:, None] == i, tl.reshape(x, (4, 16)), 0.0), 0)


@triton.jit
def _key_rows(k, start, T, H: tl.constexpr, DK: tl.constexpr, at_d):
    """k [16, len(at_d)] from token `start` on."""
    t = start + tl.arange(0, 16)
    return tl.load(k + t[:, None] * (H * DK) + at_d[None, :], mask=t[:, None] < T, other=0.0)


@triton.jit
def _store_block(pointer, i: tl.constexpr, j: tl.constexpr, a, c):
    """Block (i, j) of A from that of A0."""
    at = tl.arange(0, 16)
    row, column = i * 16 + at[:, None], j * 16 + at[None, :]
    decay = decay_between(_block(c, i)[:, None], _block(c, j)[None, :], row >= column)
    tl.store(pointer + row * C + column, narrow(a * decay, pointer.dtype.element_ty))


@triton.jit(do_not_specialize=["T"])
def invert_kernel(
    k, g, beta, inverse, running, strength, T, H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk and value head; see Chunks for what it writes."""
    n = tl.cdiv(T, C)
    chunk = tl.program_id(0) % n
    lane = (tl.program_id(0) // n).to(tl.int64)
    head = lane % HV
    row = lane // HV * T
    start = chunk * C
    t = start + tl.arange(0, C)
    gate = tl.load(g + (row + t) * HV + head, mask=t < T, other=0.0)
    b = tl.load(beta + (row + t) * HV + head, mask=t < T, other=0.0).to(tl.float32)
    c = tl.cumsum(log2_decay(gate), 0)
    tl.store(running + lane * n * C + t, c)
    tl.store(strength + lane * n * C + t, b)

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
    # Columns times beta; the diagonal blocks keep what is strictly below their diagonal.
    b0, b1, b2, b3 = _block(b, 0)[None, :], _block(b, 1)[None, :], _block(b, 2)[None, :], _block(b, 3)[None, :]
    at = tl.arange(0, 16)
    below = at[:, None] > at[None, :]
    x00, x11 = tl.where(below, x00 * b0, 0.0), tl.where(below, x11 * b1, 0.0)
    x22, x33 = tl.where(below, x22 * b2, 0.0), tl.where(below, x33 * b3, 0.0)
    a00, a11, a22, a33 = _unit_inverses(x00, x11, x22, x33)
    x10, x20, x30 = x10 * b0, x20 * b0, x30 * b0
    x21, x31, x32 = x21 * b1, x31 * b1, x32 * b2
    # Always in three tf32 products: the inverse feeds everything else.
    a10 = -matmul(a11, matmul(x10, a00, "tf32x3"), "tf32x3")
    a21 = -matmul(a22, matmul(x21, a11, "tf32x3"), "tf32x3")
    a32 = -matmul(a33, matmul(x32, a22, "tf32x3"), "tf32x3")
    a20 = -matmul(a22, matmul(x20, a00, "tf32x3") + matmul(x21, a10, "tf32x3"), "tf32x3")
    a31 = -matmul(a33, matmul(x31, a11, "tf32x3") + matmul(x32, a21, "tf32x3"), "tf32x3")
    x30a = matmul(x30, a00, "tf32x3") + matmul(x31, a10, "tf32x3") + matmul(x32, a20, "tf32x3")
    a30 = -matmul(a33, x30a, "tf32x3")

    inverse += (lane * n + chunk) * C * C
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


@triton.jit(do_not_specialize=["T"])
def score_kernel(
    q, k, running, scores, scores_low, T, scale, H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk and value head: rows read, columns were written before."""
    n = tl.cdiv(T, C)
    chunk = tl.program_id(0) % n
    lane = (tl.program_id(0) // n).to(tl.int64)
    key = (lane // HV * T * H + lane % HV // (HV // H)) * DK
    at = tl.arange(0, C)
    t = chunk * C + at
    valid = (t < T)[:, None]
    product = tl.zeros((C, C), tl.float32)
    for first in range(0, DK, BK):
        offsets = t[:, None] * (H * DK) + first + tl.arange(0, BK)[None, :]
        queries = tl.load(q + key + offsets, mask=valid, other=0.0)
        keys = tl.load(k + key + offsets, mask=valid, other=0.0)
        product += matmul(queries, tl.trans(keys), PRECISION)
    c = tl.load(running + lane * n * C + t)
    product *= decay_between(c[:, None], c[None, :], at[:, None] >= at[None, :]) * scale
    tile = (lane * n + chunk) * C * C + at[:, None] * C + at[None, :]
    high, low = split(product, scores.dtype.element_ty)
    tl.store(scores + tile, high)
    if scores.dtype.element_ty.primitive_bitwidth < 32:
        tl.store(scores_low + tile, low)


def prepare(q: Tensor, k: Tensor, g: Tensor, beta: Tensor, scale: float, plan: Plan) -> Chunks:
    """What depends neither on the state nor on values. Tensors contiguous, as in gated_delta_rule."""
    batch, time, key_heads, d_k = k.shape
    value_heads, n = g.shape[2], triton.cdiv(time, CHUNK)
    inverse = k.new_empty((batch, value_heads, n, CHUNK, CHUNK))
    running = k.new_empty((batch, value_heads, n * CHUNK), dtype=torch.float32)
    scores = torch.empty_like(inverse)
    scores_low = scores if scores.dtype == torch.float32 else torch.empty_like(scores)
    chunks = Chunks(inverse, running, torch.empty_like(running), scores, scores_low)
    heads = {"H": key_heads, "HV": value_heads, "DK": d_k, "PRECISION": plan.precision}
    grid, launch = (batch * value_heads * n,), plan.invert
    invert_kernel[grid](
        k,
        g,
        beta,
        *chunks[:3],
        time,
        BK=min(launch.block, d_k),
        **heads,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    launch = plan.score
    score_kernel[grid](
        q,
        k,
        chunks.running,
        chunks.scores,
        chunks.scores_low,
        time,
        scale,
        BK=min(launch.block, d_k),
        **heads,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return chunks
