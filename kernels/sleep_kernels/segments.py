"""Segments of the chunked gated delta rule: how batch and time are partitioned, and the intra-chunk tensors.

A segment is a run of equal chunks whose tensors fit into a core's cache. Intra-chunk tensors do not depend on the state, so
they are computed for all chunks of a segment at once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sleep_kernels.common import RuleArguments, compute_dtype, device_kind, even_slices, max_items_per_slice

# Chunk length by device. On CPU 32 is faster than 16 and 64 for d = 32 ... 256; GPU matrix units need 64 rows.
_CHUNK = {"cpu": 32, "cuda": 64}
# Lower bounds of log2 decays: exp2 of them is zero in the dtype, so that such a token resets the state. Without a bound it would
# make the cumulative sum, and so the differences of its elements, inaccurate. Powers of two because exp2 is several times faster
# than exp on CPU.
_LOWEST_LOG2 = {torch.float32: -150.0, torch.float64: -1080.0}


class ChunkInputs(NamedTuple):
    """Inputs of one batch slice; log2_g and beta [batch, time, value_heads] are in the compute dtype.

    resets: [batch, time, value_heads] bool, true where g resets the state, and log2_g is 0; None: such a g has the lower bound.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log2_g: Tensor
    beta: Tensor
    resets: Tensor | None
    scale: float


class SequenceSegment(NamedTuple):
    """Intra-chunk tensors of n equal chunks. bh = batch * value_heads, C = chunk length; symbols as in chunked.py."""

    start: int
    stop: int
    qk: Tensor  # [n, bh, 2, C, d_k]  queries, keys
    k_beta: Tensor  # [n, bh, C, d_k]  beta * keys
    beta: Tensor  # [n, bh, C, 1]
    decay: Tensor  # [n, bh, 1, C, C]  G, decay between two tokens
    decay_in: Tensor  # [n, bh, C, 1]  exp(c), decay from the chunk's start
    decay_out: Tensor  # [n, bh, C, 1]  exp(c_C - c), decay to the chunk's end
    scores: Tensor  # [n, bh, 2, C, C]  (qk k_beta^T) * G
    inverse: Tensor  # [n, bh, C, C]  A
    qk_in: Tensor  # [n, bh, 2 * C, d_k]  exp(c) qk
    k_beta_out: Tensor  # [n, bh, C, d_k]  exp(c_C - c) k_beta
    resets: Tensor | None  # [n, bh, C, 1]


def convert_gates(t: RuleArguments) -> ChunkInputs:
    """Convert g to log2 and both gates to the compute dtype; q, k and v are unchanged."""
    dtype, resets = compute_dtype(t.q), None
    log2_g = torch.mul(t.g.to(dtype), math.log2(math.e))
    if t.resets:
        resets = log2_g <= _LOWEST_LOG2[dtype]
        log2_g.masked_fill_(resets, 0)
    else:
        log2_g.clamp_(min=_LOWEST_LOG2[dtype])
    return ChunkInputs(t.q, t.k, t.v, log2_g, t.beta.to(dtype), resets, t.scale)


def batch_slice(inputs: ChunkInputs, part: slice) -> ChunkInputs:
    """The inputs of some sequences of the batch."""
    q, k, v, log2_g, beta, resets, scale = inputs
    return ChunkInputs(
        q[part], k[part], v[part], log2_g[part], beta[part], None if resets is None else resets[part], scale
    )


def partition(q: Tensor, v: Tensor) -> tuple[list[slice], list[tuple[int, int, int]]]:
    """Batch slices, and the segments (start, stop, chunk length) of time that each of them goes through."""
    batch, time, value_heads, d_v = v.shape
    longest = _CHUNK[device_kind(q)]
    chunk = -(-time // -(-time // longest))
    row_bytes = value_heads * 2 * chunk * max(q.shape[3], d_v) * compute_dtype(q).itemsize
    rows = list(even_slices(batch, row_bytes, q))
    width = chunk * max_items_per_slice(rows[0].stop * row_bytes, q)
    whole = time // chunk * chunk
    segments = [(start, min(start + width, whole), chunk) for start in range(0, whole, width)]
    if whole < time:
        segments.append((whole, time, time - whole))
    return rows, segments


def chunk_view(t: Tensor, start: int, stop: int, chunk: int) -> Tensor:
    """View time start..stop of [batch, time, heads, ...] as [n, batch, heads, chunk, ...]."""
    t = t[:, start:stop]
    t = t.view(t.shape[0], (stop - start) // chunk, chunk, *t.shape[2:])
    return t.permute(1, 0, 3, 2, *range(4, t.dim()))


def _unit_lower_inverse(matrices: Tensor) -> Tensor:
    """(1 + strict_tril(m))^-1 for each m of [n, C, C], by substitution. The rest of m is not read."""
    n, size, _ = matrices.shape
    half = size // 2
    if size < 32 or size % 2:
        one = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand(n, size, size)
        # Solving from the right is twice as fast as from the left on CPU.
        return torch.linalg.solve_triangular(matrices, one, upper=False, left=False, unitriangular=True)
    # Inverting the two diagonal halves and merging is a third cheaper than one solve, and as accurate.
    corners = torch.stack((matrices[:, :half, :half], matrices[:, half:, half:])).view(2 * n, half, half)
    first, second = _unit_lower_inverse(corners).view(2, n, half, half)
    result = matrices.new_zeros((n, size, size))
    result[:, :half, :half].copy_(first)
    result[:, half:, half:].copy_(second)
    torch.neg(torch.bmm(second, torch.bmm(matrices[:, half:, :half], first)), out=result[:, half:, :half])
    return result


def intra_chunk(inputs: ChunkInputs, start: int, stop: int, chunk: int) -> SequenceSegment:
    """Compute the intra-chunk tensors of one segment."""
    q, k, g, beta = (chunk_view(t, start, stop, chunk) for t in (inputs.q, inputs.k, inputs.log2_g, inputs.beta))
    n, batch, key_heads, _, d_k = q.shape
    bh, group = batch * g.shape[2], g.shape[2] // key_heads
    qk = g.new_empty((n, batch, key_heads, group, 2, chunk, d_k))
    qk[:, :, :, :, 0].copy_(q.unsqueeze(3))
    qk[:, :, :, :, 1].copy_(k.unsqueeze(3))
    qk = qk.view(n, bh, 2, chunk, d_k)
    beta_column = beta.reshape(n, bh, chunk, 1)
    k_beta = qk[:, :, 1] * beta_column
    cumsum = g.reshape(n, bh, chunk, 1).cumsum(-2)
    # Masked before exp2: above the diagonal the difference is positive and could overflow.
    above = g.new_full((chunk, chunk), -math.inf).triu_(1)
    decay = torch.sub(cumsum, cumsum.mT).add_(above).exp2_().unsqueeze(2)
    decay_in, decay_out = cumsum.exp2(), torch.exp2(cumsum[:, :, -1:] - cumsum)
    resets = None
    if inputs.resets is not None:
        resets = chunk_view(inputs.resets, start, stop, chunk).reshape(n, bh, chunk, 1)
        number = resets.cumsum(-2)
        decay.masked_fill_((number != number.mT).unsqueeze(2), 0)
        decay_in.masked_fill_(number > 0, 0)
        decay_out.masked_fill_(number < number[:, :, -1:], 0)
    flat = n * bh
    scores = torch.bmm(qk.view(flat, 2 * chunk, d_k), k_beta.view(flat, chunk, d_k).mT).view(n, bh, 2, chunk, chunk)
    scores.mul_(decay)
    inverse = _unit_lower_inverse(scores.view(flat, 2, chunk, chunk)[:, 1])
    return SequenceSegment(
        start,
        stop,
        qk,
        k_beta,
        beta_column,
        decay,
        decay_in,
        decay_out,
        scores,
        inverse.view(n, bh, chunk, chunk),
        qk_in=(qk * decay_in.unsqueeze(2)).view(n, bh, 2 * chunk, d_k),
        k_beta_out=k_beta * decay_out,
        resets=resets,
    )
