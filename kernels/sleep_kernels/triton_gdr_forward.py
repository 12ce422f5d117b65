"""The gated delta rule in Triton, forward: after what triton_gdr_chunks.py computes, one sweep over the chunks.

    sweep    one program per (sequence, value head, part of d_v) walks over the chunks with S in registers and writes
             outputs and the final state; no state but the last reaches memory. With REPLAY it instead writes what
             backward needs: S before each chunk and the residuals e.

Symbols as in chunked.py. The residual form is an idea of QwenLM/FlashQLA (MIT); the code is our own.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, add_product, matmul, narrow, split
from sleep_kernels.triton_gdr_chunks import Chunks, prepare
from sleep_kernels.verified import Launch, Plan

C = tl.constexpr(CHUNK)


class Replayed(NamedTuple):
    """What backward needs of the forward's sweep, in the dtype of k; n chunks of 64."""

    states: Tensor  # [batch, value_heads, n, d_k, d_v]  S before each chunk
    residuals: Tensor  # [batch, value_heads, n * 64, d_v]  e
    residuals_low: Tensor  # what e loses by that; the same tensor where the dtype is float32, which loses nothing


@triton.jit(do_not_specialize=["T"])
def sweep_kernel(
    q, k, v, inverse, running, strength, scores, scores_low, initial, o, final, states, residuals, residuals_low,
    T, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    HAS_INITIAL: tl.constexpr, REPLAY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per sequence, value head and BV columns of S.

    Writes o and final, or with REPLAY what Replayed holds.
    """
    DTYPE: tl.constexpr = k.dtype.element_ty
    n = tl.cdiv(T, C)
    lane = (tl.program_id(0) // (DV // BV)).to(tl.int64)
    head = lane % HV
    row = lane // HV * T
    at_k = tl.arange(0, DK)
    at_v = tl.program_id(0) % (DV // BV) * BV + tl.arange(0, BV)
    at = tl.arange(0, C)
    key = (row * H + head // (HV // H)) * DK
    q += key
    k += key
    v += (row * HV + head) * DV
    o += (row * HV + head) * DV
    inverse += lane * n * C * C
    scores += lane * n * C * C
    scores_low += lane * n * C * C
    running += lane * n * C
    strength += lane * n * C
    residuals += lane * n * C * DV
    residuals_low += lane * n * C * DV
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_INITIAL:  # noqa: SIM108
        state = tl.load(initial + lane * DK * DV + tile)
    else:
        state = tl.zeros((DK, BV), tl.float32)
    for i in range(n):
        t = i * C + at
        valid = (t < T)[:, None]
        keys = tl.load(k + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        values = tl.load(v + t[:, None] * (HV * DV) + at_v[None, :], mask=valid, other=0.0)
        square = i * C * C + at[:, None] * C + at[None, :]
        a = tl.load(inverse + square)
        c = tl.load(running + t)
        last = tl.load(running + i * C + C - 1)
        beta = tl.load(strength + t)
        held = narrow(state, DTYPE)
        into = tl.exp2(c)[:, None]
        rest = values - into * matmul(keys, held, PRECISION)
        e = add_product(tl.zeros((C, BV), tl.float32), a, rest, PRECISION)
        written = e * beta[:, None]
        if REPLAY:
            tl.store(states + (lane * n + i) * DK * DV + tile, held)
            high, low = split(e, DTYPE)
            tl.store(residuals + t[:, None] * DV + at_v[None, :], high)
            if DTYPE.primitive_bitwidth < 32:
                tl.store(residuals_low + t[:, None] * DV + at_v[None, :], low)
        state = state * tl.exp2(last)
        state = add_product(state, tl.trans(keys), written * tl.exp2(last - c)[:, None], PRECISION)
        if not REPLAY:
            queries = tl.load(q + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
            p = tl.load(scores + square)
            high, low = split(written, DTYPE)
            out = matmul(queries, held, PRECISION) * (into * scale) + matmul(p, high, PRECISION)
            if DTYPE.primitive_bitwidth < 32:  # what rounding took from the two, or o would be rounded three times
                out += matmul(tl.load(scores_low + square), high, PRECISION)
                out += matmul(p, low, PRECISION)
            tl.store(o + t[:, None] * (HV * DV) + at_v[None, :], narrow(out, o.dtype.element_ty), mask=valid)
    if not REPLAY:
        tl.store(final + lane * DK * DV + tile, state)


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, scale: float, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Outputs and final state; arguments as in `sleep_kernels.gated_delta_rule`, already checked and contiguous."""
    batch, _, value_heads, d_v = v.shape
    o = torch.empty_like(v)
    final = q.new_empty((batch, value_heads, q.shape[3], d_v), dtype=torch.float32)
    chunks = prepare(q, k, g, beta, scale, plan)
    _sweep(q, k, v, chunks, initial_state, o, final, None, scale, plan.sweep, plan.precision)
    return o, final


def replay(
    k: Tensor, v: Tensor, chunks: Chunks, initial_state: Tensor | None, launch: Launch, precision: str
) -> Replayed:
    """The forward's sweep once more, for what backward needs of it."""
    batch, value_heads, n = chunks.inverse.shape[:3]
    states = k.new_empty((batch, value_heads, n, k.shape[3], v.shape[3]))
    e = k.new_empty((batch, value_heads, n * CHUNK, v.shape[3]))
    replayed = Replayed(states, e, e if e.dtype == torch.float32 else torch.empty_like(e))
    _sweep(k, k, v, chunks, initial_state, v, None, replayed, 1.0, launch, precision)
    return replayed


def _sweep(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: Chunks,
    initial: Tensor | None,
    o: Tensor,
    final: Tensor | None,
    replayed: Replayed | None,
    scale: float,
    launch: Launch,
    precision: str,
) -> None:
    batch, time, value_heads, d_v = v.shape
    block = min(launch.block, d_v)
    # Pointers that a mode does not touch must still be some tensor's.
    sweep_kernel[(batch * value_heads * (d_v // block),)](
        q,
        k,
        v,
        *chunks,
        chunks.running if initial is None else initial,
        o,
        chunks.running if final is None else final,
        *(replayed or (k, k, k)),
        time,
        scale,
        H=k.shape[2],
        HV=value_heads,
        DK=k.shape[3],
        DV=d_v,
        BV=block,
        HAS_INITIAL=initial is not None,
        REPLAY=final is None,
        PRECISION=precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
