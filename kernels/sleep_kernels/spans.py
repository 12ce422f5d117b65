"""Cuts the work of the chunked gated delta rule into cache-sized spans and computes what does not depend on the state."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sleep_kernels.common import computing_dtype, device_kind, even_slices, fitting

# Chunk length by device: on CPU 32 beats 16 and 64 for d = 32 ... 256; GPUs want 64 for their matrix units.
_CHUNK = {"cpu": 32, "cuda": 64}
# exp2 is several times faster than exp on CPU. Decays below these powers of two are zero in the dtype; the bound keeps
# the running sum, and so the differences of its elements, accurate after a token with g = -1e4.
_LOWEST_LOG2 = {torch.float32: -150.0, torch.float64: -1080.0}


class Inputs(NamedTuple):
    """Inputs of a slice of the batch; log2_g [batch, time, value_heads] and what follows in the computing dtype."""

    q: Tensor
    k: Tensor
    v: Tensor
    log2_g: Tensor
    beta: Tensor
    scale: float


class Span(NamedTuple):
    """What a run of n equal chunks needs besides the state. N = batch * value_heads lanes, C = chunk length."""

    start: int
    stop: int
    x: Tensor  # [n, N, 2, C, d_k]   queries, keys
    kappa: Tensor  # [n, N, C, d_k]      beta * keys
    beta: Tensor  # [n, N, C, 1]
    decay: Tensor  # [n, N, 1, C, C]     G
    into: Tensor  # [n, N, C, 1]        exp(c)
    out: Tensor  # [n, N, C, 1]        exp(c_C - c)
    scores: Tensor  # [n, N, 2, C, C]     (x kappa^T) * G
    inverse: Tensor  # [n, N, C, C]        A
    x_into: Tensor  # [n, N, 2 * C, d_k]  exp(c) x
    kappa_out: Tensor  # [n, N, C, d_k]      exp(c_C - c) kappa


def gather(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float) -> Inputs:
    """Gates in the computing dtype and as powers of two; q, k, v as they are."""
    dtype = computing_dtype(q)
    log2_g = torch.mul(g.to(dtype), math.log2(math.e)).clamp_(min=_LOWEST_LOG2[dtype])
    return Inputs(q, k, v, log2_g, beta.to(dtype), scale)


def rows_of(inputs: Inputs, part: slice) -> Inputs:
    """A slice of the batch."""
    q, k, v, log2_g, beta, scale = inputs
    return Inputs(q[part], k[part], v[part], log2_g[part], beta[part], scale)


def plan(q: Tensor, v: Tensor) -> tuple[list[slice], list[tuple[int, int, int]]]:
    """Slices of the batch to take one after the other, and the spans (start, stop, chunk) of time in each."""
    batch, time, value_heads, d_v = v.shape
    longest = _CHUNK[device_kind(q)]
    chunk = -(-time // -(-time // longest))
    row_bytes = value_heads * 2 * chunk * max(q.shape[3], d_v) * computing_dtype(q).itemsize
    rows = list(even_slices(batch, row_bytes, q))
    width = chunk * fitting(rows[0].stop * row_bytes, q)
    whole = time // chunk * chunk
    spans = [(start, min(start + width, whole), chunk) for start in range(0, whole, width)]
    if whole < time:
        spans.append((whole, time, time - whole))
    return rows, spans


def by_chunk(t: Tensor, start: int, stop: int, chunk: int) -> Tensor:
    """View time start..stop of [batch, time, heads, ...] as [n, batch, heads, chunk, ...]."""
    t = t[:, start:stop]
    t = t.view(t.shape[0], (stop - start) // chunk, chunk, *t.shape[2:])
    return t.permute(1, 0, 3, 2, *range(4, t.dim()))


def _unit_lower_inverse(matrices: Tensor) -> Tensor:
    """(1 + strict_tril(m))^-1 for each m of [n, C, C], by substitution; what m has elsewhere is not read."""
    n, size, _ = matrices.shape
    half = size // 2
    if size < 32 or size % 2:
        one = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand(n, size, size)
        # From the right: twice as fast as from the left on CPU.
        return torch.linalg.solve_triangular(matrices, one, upper=False, left=False, unitriangular=True)
    # Halves and a product are a third cheaper than the whole, and as accurate.
    corners = torch.stack((matrices[:, :half, :half], matrices[:, half:, half:])).view(2 * n, half, half)
    first, second = _unit_lower_inverse(corners).view(2, n, half, half)
    result = matrices.new_zeros((n, size, size))
    result[:, :half, :half].copy_(first)
    result[:, half:, half:].copy_(second)
    torch.neg(torch.bmm(second, torch.bmm(matrices[:, half:, :half], first)), out=result[:, half:, :half])
    return result


def prepare(inputs: Inputs, start: int, stop: int, chunk: int) -> Span:
    """Everything of a span that does not depend on the state."""
    q, k, g, beta = (by_chunk(t, start, stop, chunk) for t in (inputs.q, inputs.k, inputs.log2_g, inputs.beta))
    n, batch, key_heads, _, d_k = q.shape
    lanes, group = batch * g.shape[2], g.shape[2] // key_heads
    x = g.new_empty((n, batch, key_heads, group, 2, chunk, d_k))
    x[:, :, :, :, 0].copy_(q.unsqueeze(3))
    x[:, :, :, :, 1].copy_(k.unsqueeze(3))
    x = x.view(n, lanes, 2, chunk, d_k)
    strength = beta.reshape(n, lanes, chunk, 1)
    kappa = x[:, :, 1] * strength
    running = g.reshape(n, lanes, chunk, 1).cumsum(-2)
    # Masked before exp2: above the diagonal the difference is positive and could overflow.
    above = g.new_full((chunk, chunk), -math.inf).triu_(1)
    decay = torch.sub(running, running.mT).add_(above).exp2_().unsqueeze(2)
    into, out = running.exp2(), torch.exp2(running[:, :, -1:] - running)
    flat = n * lanes
    scores = torch.bmm(x.view(flat, 2 * chunk, d_k), kappa.view(flat, chunk, d_k).mT).view(n, lanes, 2, chunk, chunk)
    scores.mul_(decay)
    inverse = _unit_lower_inverse(scores.view(flat, 2, chunk, chunk)[:, 1])
    return Span(
        start,
        stop,
        x,
        kappa,
        strength,
        decay,
        into,
        out,
        scores,
        inverse.view(n, lanes, chunk, chunk),
        x_into=(x * into.unsqueeze(2)).view(n, lanes, 2 * chunk, d_k),
        kappa_out=kappa * out,
    )
