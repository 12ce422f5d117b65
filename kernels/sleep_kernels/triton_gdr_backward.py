"""Backward of the gated delta rule in Triton: recompute the states, propagate their gradients, then all other gradients.

Algebra and symbols as in chunked.py. Only the inputs were saved, so the forward kernels solve_tril, intra_scores and chunk_fwd
(RECOMPUTE) run again first. chunk_bwd_dqk (triton_gdr_dqk.py) runs last.

    chunk_bwd_dh   one program per (sequence, value head, block of d_v) iterates over chunks in reverse with dS in registers
                   and writes dv = dr, dS' after each chunk and dS of the initial state

In bfloat16, computed operands of a product are split into a high and a low part (e, dS', D_q, D_k, P, and in the inter-chunk
kernels every operand that A, q and k multiply); q, k, v and do are exact; only A, S and dr are rounded. Memory traffic per
token and head at d = 128, with each tile counted once per kernel: 9.3 KB, of which 2.0 KB are the low parts of e and dS' and
the matrices D; forward 2.6 KB.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, matmul, matmul_add_split, round_to
from sleep_kernels.triton_gdr_dqk import chunk_bwd_dqk
from sleep_kernels.triton_gdr_forward import recompute_states
from sleep_kernels.triton_gdr_intra import IntraChunk, intra_chunk
from sleep_kernels.verified import LaunchConfig

C = tl.constexpr(CHUNK)


class StateGradients(NamedTuple):
    """Outputs of chunk_bwd_dh, all but dv in float32; n chunks of 64."""

    dv: Tensor  # [batch, time, value_heads, d_v]
    d_states: Tensor  # [batch, value_heads, n, d_k, d_v]  dS' after each chunk
    d_initial: Tensor  # [batch, value_heads, d_k, d_v]


@kernel(do_not_specialize=["T"])
def chunk_bwd_dh_kernel(
    q, k, grad_o, inverse, g_cumsum, beta_fp32, scores, scores_low, grad_state, dv, d_states, d_initial, T, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    HAS_GRAD_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per sequence, value head and BV columns of dS. Writes the tensors of StateGradients."""
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
    grad_o += (row * HV + head) * DV
    dv += (row * HV + head) * DV
    inverse += bh * n * C * C
    scores += bh * n * C * C
    scores_low += bh * n * C * C
    g_cumsum += bh * n * C
    beta_fp32 += bh * n * C
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_GRAD_STATE:  # noqa: SIM108
        d_state = tl.load(grad_state + bh * DK * DV + tile)
    else:
        d_state = tl.zeros((DK, BV), tl.float32)
    for step in range(n):
        i = n - 1 - step
        t = i * C + at
        valid = (t < T)[:, None]
        queries = tl.load(q + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        keys = tl.load(k + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        do = tl.load(grad_o + t[:, None] * (HV * DV) + at_v[None, :], mask=valid, other=0.0)
        square = i * C * C + at[:, None] * C + at[None, :]
        a = tl.load(inverse + square)
        p = tl.load(scores + square)
        c = tl.load(g_cumsum + t)
        last = tl.load(g_cumsum + i * C + C - 1)
        beta = tl.load(beta_fp32 + t)
        tl.store(d_states + (bh * n + i) * DK * DV + tile, d_state)
        d_written = (
            matmul_add_split(tl.zeros((C, BV), tl.float32), keys, d_state, PRECISION) * tl.exp2(last - c)[:, None]
        )
        d_written += matmul(tl.trans(p), do, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            p_low = tl.load(scores_low + square)
            d_written += matmul(tl.trans(p_low), do, PRECISION)
        dr = matmul_add_split(tl.zeros((C, BV), tl.float32), tl.trans(a), d_written * beta[:, None], PRECISION)
        tl.store(dv + t[:, None] * (HV * DV) + at_v[None, :], round_to(dr, DTYPE), mask=valid)
        decay_in = tl.exp2(c)[:, None]
        d_state = d_state * tl.exp2(last)
        d_state = matmul_add_split(d_state, tl.trans(queries), do * (decay_in * scale), PRECISION)
        d_state = matmul_add_split(d_state, tl.trans(keys), dr * -decay_in, PRECISION)
    tl.store(d_initial + bh * DK * DV + tile, d_state)


def backward(
    grad_o: Tensor | None, grad_state: Tensor | None, args: RuleArguments, config: LaunchConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state; None for an output's gradient means zero. Tensors contiguous."""
    if grad_o is None:
        grad_o = torch.zeros_like(args.v)
    intra = intra_chunk(args, config)
    recomputed = recompute_states(args, intra, config)
    grads = _launch_chunk_bwd_dh(grad_o, grad_state, args, intra, config)
    dq, dk, dg, dbeta = chunk_bwd_dqk(args, grad_o, grads.dv, intra, recomputed, grads.d_states, config)
    return dq, dk, grads.dv, dg, dbeta, grads.d_initial


def _launch_chunk_bwd_dh(
    grad_o: Tensor, grad_state: Tensor | None, args: RuleArguments, intra: IntraChunk, config: LaunchConfig
) -> StateGradients:
    (batch, time, value_heads, d_v), k, launch = grad_o.shape, args.k, config.chunk_bwd_dh
    d_k, n, block = k.shape[3], intra.inverse.shape[2], min(launch.block, d_v)
    d_states = k.new_empty((batch, value_heads, n, d_k, d_v), dtype=torch.float32)
    grads = StateGradients(torch.empty_like(grad_o), d_states, torch.empty_like(d_states[:, :, 0]))
    chunk_bwd_dh_kernel[(batch * value_heads * (d_v // block),)](
        args.q,
        k,
        grad_o,
        *intra,
        intra.g_cumsum if grad_state is None else grad_state,
        *grads,
        time,
        args.scale,
        H=k.shape[2],
        HV=value_heads,
        DK=d_k,
        DV=d_v,
        BV=block,
        HAS_GRAD_STATE=grad_state is not None,
        PRECISION=config.precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return grads
