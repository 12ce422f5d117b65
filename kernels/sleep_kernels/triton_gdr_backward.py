"""Backward of the gated delta rule in Triton: recompute the states, propagate their gradients, then all other gradients.

Algebra and symbols as in chunked.py. Only the inputs were saved, so the forward kernels solve_tril and chunk_fwd (RECOMPUTE) run
again first. chunk_bwd_dqk (triton_gdr_dqk.py) runs last.

    chunk_bwd_dh   one program per (sequence, value head, block of d_v) iterates over chunks in reverse with dS in registers
                   and writes dv = dr, dS' after each chunk and dS of the initial state

Operands of products have the dtype of k. States and their gradients are float32 in registers, sums are float32. In bfloat16 memory
traffic per token and head at d = 128, with each tile counted once per kernel, is 6.3 KB, of forward 1.6 KB.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, decay_between, matmul, round_to
from sleep_kernels.triton_gdr_dqk import chunk_bwd_dqk
from sleep_kernels.triton_gdr_forward import recompute_states
from sleep_kernels.triton_gdr_intra import IntraChunk, intra_chunk
from sleep_kernels.verified import LaunchConfig

C = tl.constexpr(CHUNK)


class StateGradients(NamedTuple):
    """Outputs of chunk_bwd_dh; n chunks of 64."""

    dv: Tensor  # [batch, time, value_heads, d_v]
    d_states: Tensor  # [batch, value_heads, n, d_k, d_v]  dS' after each chunk, in the dtype of k
    d_initial: Tensor  # [batch, value_heads, d_k, d_v]  float32


@kernel(do_not_specialize=["T"])
def chunk_bwd_dh_kernel(
    q, k, grad_o, inverse, g_cumsum, beta_fp32, grad_state, dv, d_states, d_initial, T, scale,
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
    g_cumsum += bh * n * C
    beta_fp32 += bh * n * C
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_GRAD_STATE:  # noqa: SIM108
        d_state = tl.load(grad_state + bh * DK * DV + tile)
    else:
        d_state = tl.zeros((DK, BV), tl.float32)
    # Without disable_licm the compiler hoists offsets out of this loop and spills them.
    for step in tl.range(0, n, disable_licm=True):
        i = n - 1 - step
        t = i * C + at
        valid = (t < T)[:, None]
        queries = tl.load(q + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        keys = tl.load(k + t[:, None] * (H * DK) + at_k[None, :], mask=valid, other=0.0)
        do = tl.load(grad_o + t[:, None] * (HV * DV) + at_v[None, :], mask=valid, other=0.0)
        a = tl.load(inverse + i * C * C + at[:, None] * C + at[None, :])
        c = tl.load(g_cumsum + t)
        last = tl.load(g_cumsum + i * C + C - 1)
        beta = tl.load(beta_fp32 + t)
        # P^T as a product of its own: the transpose of a product may not be an operand (triton_common.py).
        p = matmul(keys, tl.trans(queries), PRECISION)
        p *= decay_between(c[None, :], c[:, None], at[None, :] >= at[:, None]) * scale
        d_written = matmul(round_to(p, DTYPE), do, PRECISION)
        rounded = round_to(d_state, DTYPE)
        tl.store(d_states + (bh * n + i) * DK * DV + tile, rounded)
        d_written += matmul(keys, rounded, PRECISION) * tl.exp2(last - c)[:, None]
        dr = matmul(tl.trans(a), round_to(d_written * beta[:, None], DTYPE), PRECISION)
        tl.store(dv + t[:, None] * (HV * DV) + at_v[None, :], round_to(dr, DTYPE), mask=valid)
        decay_in = tl.exp2(c)[:, None]
        d_state = d_state * tl.exp2(last)
        d_state += matmul(tl.trans(queries), round_to(do * (decay_in * scale), DTYPE), PRECISION)
        d_state -= matmul(tl.trans(keys), round_to(dr * decay_in, DTYPE), PRECISION)
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
    gates = (intra.g_cumsum, intra.beta_fp32)
    del intra  # the last kernel does not read the inverse, whose memory is free for its results
    dq, dk, dg, dbeta = chunk_bwd_dqk(args, grad_o, grads.dv, gates, recomputed, grads.d_states, config)
    return dq, dk, grads.dv, dg, dbeta, grads.d_initial


def _launch_chunk_bwd_dh(
    grad_o: Tensor, grad_state: Tensor | None, args: RuleArguments, intra: IntraChunk, config: LaunchConfig
) -> StateGradients:
    (batch, time, value_heads, d_v), k, launch = grad_o.shape, args.k, config.chunk_bwd_dh
    d_k, n, block = k.shape[3], intra.inverse.shape[2], min(launch.block, d_v)
    d_states = k.new_empty((batch, value_heads, n, d_k, d_v))
    d_initial = k.new_empty((batch, value_heads, d_k, d_v), dtype=torch.float32)
    grads = StateGradients(torch.empty_like(grad_o), d_states, d_initial)
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
