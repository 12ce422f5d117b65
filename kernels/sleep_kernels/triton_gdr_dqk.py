"""Last backward kernel of the gated delta rule in Triton: dq, dk, dg and dbeta, parallel over all chunks.

    chunk_bwd_dqk   one program per (chunk, key head, block of d_k). It loops over the value heads of its key head, so that
                    their gradients are summed in a fixed order without atomics.

The intra-chunk part is in triton_gdr_intra_backward.py.

Algebra and symbols as in chunked.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, matmul, round_to
from sleep_kernels.triton_gdr_forward import RecomputedStates
from sleep_kernels.triton_gdr_intra_backward import gate_gradients, intra_matrices, intra_products
from sleep_kernels.verified import LaunchConfig

C = tl.constexpr(CHUNK)


@triton.jit
def _query_state_gradient(grad_o, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr,
                          BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """do S^T [C, BK] and <S, dS'>; states and d_states are pointers to the rows of their tiles [BK, 1]."""
    d_q = tl.zeros((C, BK), tl.float32)
    state_dot = 0.0
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        state = tl.load(states + at_v[None, :])
        state_dot += tl.sum(state.to(tl.float32) * tl.load(d_states + at_v[None, :]).to(tl.float32))
        d_q += matmul(do, tl.trans(state), PRECISION)
    return d_q, state_dot


@triton.jit
def _key_state_gradients(dv, residuals, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr,
                         BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dr S^T and e dS'^T [C, BK]; states and d_states as in _query_state_gradient.

    Not merged with the loop of _query_state_gradient, because the accumulators would not fit into registers.
    """
    d_k_state = tl.zeros((C, BK), tl.float32)
    d_k_beta = tl.zeros((C, BK), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        state = tl.load(states + at_v[None, :])
        d_k_state += matmul(dr, tl.trans(state), PRECISION)
        e = tl.load(residuals + tl.arange(0, C)[:, None] * DV + at_v[None, :])
        d_state = tl.load(d_states + at_v[None, :])
        d_k_beta += matmul(e, tl.trans(d_state), PRECISION)
    return d_k_state, d_k_beta


@triton.jit
def _store_gate_gradients(dg, dbeta, d_c, d_beta, state_dot, part, rows, row, head, t, valid, HV: tl.constexpr):
    """Store dg and dbeta of a chunk and value head. The gradient of a cumulative sum is the reverse one in the chunk."""
    d_g = tl.cumsum(d_c, 0, reverse=True) + state_dot
    gates = (part * rows + row) * HV + head
    tl.store(dg + gates + t * HV, round_to(d_g, dg.dtype.element_ty), mask=valid)
    tl.store(dbeta + gates + t * HV, round_to(d_beta, dbeta.dtype.element_ty), mask=valid)


@kernel(do_not_specialize=["T", "rows"])
def chunk_bwd_dqk_kernel(
    q, k, grad_o, dv, g_cumsum, beta_fp32, states, residuals, d_states, dq, dk, dg, dbeta,
    T, rows, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk, sequence, key head and BK columns of q and k; rows = batch * time.

    dg and dbeta are [d_k / BK, batch, time, value_heads]: partial sums over the blocks of d_k.
    """
    DTYPE: tl.constexpr = k.dtype.element_ty
    n = tl.cdiv(T, C)
    parts: tl.constexpr = DK // BK
    group: tl.constexpr = HV // H
    part = tl.program_id(0) % parts
    chunk = tl.program_id(0) // parts % n
    key_bh = (tl.program_id(0) // (parts * n)).to(tl.int64)
    row = key_bh // H * T
    at = tl.arange(0, C)
    at_k = part * BK + tl.arange(0, BK)
    t = chunk * C + at
    valid = t < T
    first_key = (row * H + key_bh % H) * DK
    key = t[:, None] * (H * DK) + at_k[None, :]
    queries = tl.load(q + first_key + key, mask=valid[:, None], other=0.0)
    keys = tl.load(k + first_key + key, mask=valid[:, None], other=0.0)
    sum_q = tl.zeros((C, BK), tl.float32)
    sum_k = tl.zeros((C, BK), tl.float32)
    # Without disable_licm the compiler hoists values out of this loop and spills them.
    for member in tl.range(0, group, disable_licm=True):
        head = (key_bh % H) * group + member
        bh = key_bh // H * HV + head
        tokens = bh * n * C + t
        # Large offsets are added to the pointers, so that offsets within a tile fit into 32 bits.
        do = grad_o + (row * HV + head) * DV
        dr = dv + (row * HV + head) * DV
        e = residuals + (bh * n + chunk) * C * DV
        tile = (bh * n + chunk) * DK * DV + at_k[:, None] * DV
        c = tl.load(g_cumsum + tokens)
        last = tl.load(g_cumsum + bh * n * C + chunk * C + C - 1)
        beta = tl.load(beta_fp32 + tokens)
        do_e, dr_e, e_do, e_dr = intra_products(do, dr, e, t, valid, HV * DV, DV, BV, PRECISION)
        qk_scores, kk_scores = matmul(queries, tl.trans(keys), PRECISION), matmul(keys, tl.trans(keys), PRECISION)
        d_c, d_beta = gate_gradients(do_e, dr_e, qk_scores, kk_scores, c, beta, scale)
        lower, upper, symmetric = intra_matrices(do_e, dr_e, e_do, e_dr, c, beta, scale)
        sum_k += matmul(round_to(upper, DTYPE), queries, PRECISION)
        sum_k += matmul(round_to(symmetric, DTYPE), keys, PRECISION)
        sum_q += matmul(round_to(lower, DTYPE), keys, PRECISION)
        decay_in = tl.exp2(c)[:, None]
        d_q, state_dot = _query_state_gradient(
            do, states + tile, d_states + tile, t, valid, HV * DV, DV, BK, BV, PRECISION
        )
        d_q *= decay_in * scale
        d_c += tl.sum(d_q * queries.to(tl.float32), 1)
        sum_q += d_q
        if group == 1:  # stored here, so that it takes no registers below
            tl.store(dq + first_key + key, round_to(sum_q, dq.dtype.element_ty), mask=valid[:, None])
        d_k_state, d_k_beta = _key_state_gradients(
            dr, e, states + tile, d_states + tile, t, valid, HV * DV, DV, BK, BV, PRECISION
        )
        d_k_state *= -decay_in
        d_k_beta *= tl.exp2(last - c)[:, None]
        d_beta_state = tl.sum(d_k_beta * keys.to(tl.float32), 1)
        # <S', dS'> = exp(c_C) <S, dS'> + <exp(c_C - c) kappa, e dS'^T>
        state_dot = state_dot * tl.exp2(last) + tl.sum(d_beta_state * beta)
        d_c += tl.sum(d_k_state * keys.to(tl.float32), 1) - beta * d_beta_state
        d_beta += d_beta_state
        sum_k += d_k_state + d_k_beta * beta[:, None]
        _store_gate_gradients(dg, dbeta, d_c, d_beta, state_dot, part, rows, row, head, t, valid, HV)
    if group > 1:
        tl.store(dq + first_key + key, round_to(sum_q, dq.dtype.element_ty), mask=valid[:, None])
    tl.store(dk + first_key + key, round_to(sum_k, dk.dtype.element_ty), mask=valid[:, None])


def chunk_bwd_dqk(
    args: RuleArguments,
    grad_o: Tensor,
    dv: Tensor,
    intra_gates: tuple[Tensor, Tensor],
    recomputed: RecomputedStates,
    d_states: Tensor,
    config: LaunchConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, g and beta; `intra_gates` are g_cumsum and beta_fp32 of IntraChunk."""
    q, k, g, beta = args.q, args.k, args.g, args.beta
    batch, time, key_heads, d_k = k.shape
    value_heads, d_v = dv.shape[2:]
    launch = config.chunk_bwd_dqk if value_heads == key_heads else config.chunk_bwd_dqk_grouped
    width = min(launch.width, d_k)
    parts, n = d_k // width, triton.cdiv(time, CHUNK)
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    partial = parts > 1 or g.dtype != beta.dtype
    gates = g.new_empty((2, parts, *g.shape), dtype=torch.float32 if partial else g.dtype)
    chunk_bwd_dqk_kernel[(batch * key_heads * n * parts,)](
        q,
        k,
        grad_o,
        dv,
        *intra_gates,
        *recomputed,
        d_states,
        dq,
        dk,
        *gates,
        time,
        batch * time,
        args.scale,
        H=key_heads,
        HV=value_heads,
        DK=d_k,
        DV=d_v,
        BK=width,
        BV=min(launch.block, d_v),
        PRECISION=config.precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    dg, dbeta = gates.sum(1) if parts > 1 else gates[:, 0]
    return dq, dk, dg.to(g.dtype), dbeta.to(beta.dtype)
