"""Inter-chunk forward kernel of the gated delta rule in Triton; runs after the intra-chunk kernels (triton_gdr_intra.py).

    chunk_fwd   one program per (sequence, value head, block of d_v) iterates over chunks with S in registers and writes the
                output and the final state; intermediate states are not written to memory. Each program computes the scores
                q k^T again: their product takes less time than writing and reading them. With RECOMPUTE it instead writes
                the tensors that backward needs: S before each chunk and the residuals e.

Symbols as in chunked.py. The residual form is an idea of QwenLM/FlashQLA (MIT); the code is our own.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, decay_between, matmul, round_to
from sleep_kernels.triton_gdr_intra import IntraChunk, intra_chunk
from sleep_kernels.verified import KernelLaunch, LaunchConfig

C = tl.constexpr(CHUNK)


class RecomputedStates(NamedTuple):
    """Forward tensors that backward recomputes, in the dtype of k; n chunks of 64."""

    states: Tensor  # [batch, value_heads, n, d_k, d_v]  S before each chunk
    residuals: Tensor  # [batch, value_heads, n * 64, d_v]  e


@kernel(do_not_specialize=["T"])
def chunk_fwd_kernel(
    q, k, v, inverse, g_cumsum, beta_fp32, initial, o, final, states, residuals, T, scale,
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
    g_cumsum += bh * n * C
    beta_fp32 += bh * n * C
    residuals += bh * n * C * DV
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_INITIAL:  # noqa: SIM108
        state = tl.load(initial + bh * DK * DV + tile)
    else:
        state = tl.zeros((DK, BV), tl.float32)
    # Without disable_licm the compiler hoists offsets out of this loop and spills them.
    for i in tl.range(0, n, disable_licm=True):
        t = i * C + at
        valid = (t < T)[:, None]
        keys = tl.load(k + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        values = tl.load(v + t[:, None] * (HV * DV) + at_v[None, :], mask=valid, other=0.0)
        a = tl.load(inverse + i * C * C + at[:, None] * C + at[None, :])
        c = tl.load(g_cumsum + t)
        last = tl.load(g_cumsum + i * C + C - 1)
        beta = tl.load(beta_fp32 + t)
        rounded_state = round_to(state, DTYPE)
        decay_in = tl.exp2(c)[:, None]
        rest = values - decay_in * matmul(keys, rounded_state, PRECISION)
        e = matmul(a, round_to(rest, DTYPE), PRECISION)
        written = e * beta[:, None]
        if RECOMPUTE:
            tl.store(states + (bh * n + i) * DK * DV + tile, rounded_state)
            tl.store(residuals + t[:, None] * DV + at_v[None, :], round_to(e, DTYPE))
        else:
            queries = tl.load(q + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
            p = matmul(queries, tl.trans(keys), PRECISION)
            p *= decay_between(c[:, None], c[None, :], at[:, None] >= at[None, :])
            out = matmul(queries, rounded_state, PRECISION) * decay_in
            out += matmul(round_to(p, DTYPE), round_to(written, DTYPE), PRECISION)
            tl.store(o + t[:, None] * (HV * DV) + at_v[None, :], round_to(out * scale, o.dtype.element_ty), mask=valid)
        written = round_to(written * tl.exp2(last - c)[:, None], DTYPE)
        state = state * tl.exp2(last) + matmul(tl.trans(keys), written, PRECISION)
    if not RECOMPUTE:
        tl.store(final + bh * DK * DV + tile, state)


def forward(args: RuleArguments, config: LaunchConfig) -> tuple[Tensor, Tensor]:
    """Output and final state; tensors contiguous."""
    batch, _, value_heads, d_v = args.v.shape
    o = torch.empty_like(args.v)
    final = args.q.new_empty((batch, value_heads, args.q.shape[3], d_v), dtype=torch.float32)
    intra = intra_chunk(args, config)
    # Backward's outputs are not written; k is any valid pointer.
    _launch_chunk_fwd(args, intra, o, final, RecomputedStates(args.k, args.k), config.chunk_fwd, config.precision)
    return o, final


def recompute_states(args: RuleArguments, intra: IntraChunk, config: LaunchConfig) -> RecomputedStates:
    """Run the forward recurrence again and store the tensors that backward needs."""
    batch, value_heads, n = intra.inverse.shape[:3]
    k, v = args.k, args.v
    states = k.new_empty((batch, value_heads, n, k.shape[3], v.shape[3]))
    e = k.new_empty((batch, value_heads, n * CHUNK, v.shape[3]))
    recomputed = RecomputedStates(states, e)
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
