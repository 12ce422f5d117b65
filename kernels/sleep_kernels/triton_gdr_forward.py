"""Inter-chunk forward kernel of the gated delta rule in Triton; runs after the intra-chunk kernels (triton_gdr_intra.py).

    chunk_fwd   one program per (sequence, value head, block of d_v) iterates over chunks with S in registers and writes the
                output and the final state; intermediate states are not written to memory. With RECOMPUTE it instead writes
                the tensors that backward needs: S before each chunk and the residuals e.

Symbols as in chunked.py. The residual form is an idea of QwenLM/FlashQLA (MIT); the code is our own.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, matmul, matmul_add_split, round_to, split_hi_lo
from sleep_kernels.triton_gdr_intra import IntraChunk, intra_chunk
from sleep_kernels.verified import KernelLaunch, LaunchConfig

C = tl.constexpr(CHUNK)


class RecomputedStates(NamedTuple):
    """Forward tensors that backward recomputes, in the dtype of k; n chunks of 64."""

    states: Tensor  # [batch, value_heads, n, d_k, d_v]  S before each chunk
    residuals: Tensor  # [batch, value_heads, n * 64, d_v]  e
    residuals_low: Tensor  # the rounding error of e in the dtype of k; in float32 there is none: `residuals`


@kernel(do_not_specialize=["T"])
def chunk_fwd_kernel(
    q, k, v, inverse, g_cumsum, beta_fp32, scores, scores_low, initial, o, final, states, residuals, residuals_low,
    T, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    HAS_INITIAL: tl.constexpr, RECOMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per sequence, value head and BV columns of S.

    Writes o and final, or with RECOMPUTE the tensors of RecomputedStates.
    """
    DTYPE: tl.constexpr = k.dtype.element_ty
    n = tl.cdiv(T, C)
    bh = (tl.program_id(0) // (DV // BV)).to(tl.int64)
    head = bh % HV
    row = bh // HV * T
    at_k = tl.arange(0, DK)
    at_v = tl.program_id(0) % (DV // BV) * BV + tl.arange(0, BV)
    at = tl.arange(0, C)
    key = (row * H + head // (HV // H)) * DK
    q += key
    k += key
    v += (row * HV + head) * DV
    o += (row * HV + head) * DV
    inverse += bh * n * C * C
    scores += bh * n * C * C
    scores_low += bh * n * C * C
    g_cumsum += bh * n * C
    beta_fp32 += bh * n * C
    residuals += bh * n * C * DV
    residuals_low += bh * n * C * DV
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_INITIAL:  # noqa: SIM108
        state = tl.load(initial + bh * DK * DV + tile)
    else:
        state = tl.zeros((DK, BV), tl.float32)
    for i in range(n):
        t = i * C + at
        valid = (t < T)[:, None]
        keys = tl.load(k + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        values = tl.load(v + t[:, None] * (HV * DV) + at_v[None, :], mask=valid, other=0.0)
        square = i * C * C + at[:, None] * C + at[None, :]
        a = tl.load(inverse + square)
        c = tl.load(g_cumsum + t)
        last = tl.load(g_cumsum + i * C + C - 1)
        beta = tl.load(beta_fp32 + t)
        rounded_state = round_to(state, DTYPE)
        decay_in = tl.exp2(c)[:, None]
        rest = values - decay_in * matmul(keys, rounded_state, PRECISION)
        e = matmul_add_split(tl.zeros((C, BV), tl.float32), a, rest, PRECISION)
        written = e * beta[:, None]
        if RECOMPUTE:
            tl.store(states + (bh * n + i) * DK * DV + tile, rounded_state)
            high, low = split_hi_lo(e, DTYPE)
            tl.store(residuals + t[:, None] * DV + at_v[None, :], high)
            if DTYPE.primitive_bitwidth < 32:
                tl.store(residuals_low + t[:, None] * DV + at_v[None, :], low)
        state = state * tl.exp2(last)
        state = matmul_add_split(state, tl.trans(keys), written * tl.exp2(last - c)[:, None], PRECISION)
        if not RECOMPUTE:
            queries = tl.load(q + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
            p = tl.load(scores + square)
            high, low = split_hi_lo(written, DTYPE)
            out = matmul(queries, rounded_state, PRECISION) * (decay_in * scale) + matmul(p, high, PRECISION)
            if DTYPE.primitive_bitwidth < 32:  # add both rounding errors, or o would be rounded three times
                out += matmul(tl.load(scores_low + square), high, PRECISION)
                out += matmul(p, low, PRECISION)
            tl.store(o + t[:, None] * (HV * DV) + at_v[None, :], round_to(out, o.dtype.element_ty), mask=valid)
    if not RECOMPUTE:
        tl.store(final + bh * DK * DV + tile, state)


def forward(args: RuleArguments, config: LaunchConfig) -> tuple[Tensor, Tensor]:
    """Output and final state; tensors contiguous."""
    batch, _, value_heads, d_v = args.v.shape
    o = torch.empty_like(args.v)
    final = args.q.new_empty((batch, value_heads, args.q.shape[3], d_v), dtype=torch.float32)
    intra = intra_chunk(args, config)
    # Backward's outputs are not written; k is any valid pointer.
    _launch_chunk_fwd(
        args, intra, o, final, RecomputedStates(args.k, args.k, args.k), config.chunk_fwd, config.precision
    )
    return o, final


def recompute_states(args: RuleArguments, intra: IntraChunk, config: LaunchConfig) -> RecomputedStates:
    """Run the forward recurrence again and store the tensors that backward needs."""
    batch, value_heads, n = intra.inverse.shape[:3]
    k, v = args.k, args.v
    states = k.new_empty((batch, value_heads, n, k.shape[3], v.shape[3]))
    e = k.new_empty((batch, value_heads, n * CHUNK, v.shape[3]))
    recomputed = RecomputedStates(states, e, e if e.dtype == torch.float32 else torch.empty_like(e))
    _launch_chunk_fwd(args, intra, v, None, recomputed, config.chunk_recompute, config.precision)
    return recomputed


def _launch_chunk_fwd(
    args: RuleArguments,
    intra: IntraChunk,
    o: Tensor,
    final: Tensor | None,
    recomputed: RecomputedStates,
    launch: KernelLaunch,
    precision: str,
) -> None:
    """Launch chunk_fwd_kernel; `final` None selects RECOMPUTE, which does not write `o`."""
    (batch, time, value_heads, d_v), initial = args.v.shape, args.initial_state
    block = min(launch.block, d_v)
    # Arguments that a mode does not access still need a valid pointer: g_cumsum here.
    chunk_fwd_kernel[(batch * value_heads * (d_v // block),)](
        *args[:3],
        *intra,
        intra.g_cumsum if initial is None else initial,
        o,
        intra.g_cumsum if final is None else final,
        *recomputed,
        time,
        args.scale,
        H=args.k.shape[2],
        HV=value_heads,
        DK=args.k.shape[3],
        DV=d_v,
        BV=block,
        HAS_INITIAL=initial is not None,
        RECOMPUTE=final is None,
        PRECISION=precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
