"""Last backward kernel of the gated delta rule in Triton: dq, dk, dg and dbeta, parallel over all chunks.

    chunk_bwd_dqk   one program per (chunk, key head, block of d_k). It loops over the value heads of its key head, so that
                    their gradients are summed in a fixed order without atomics.

The intra-chunk part (triton_gdr_intra_backward.py) runs first and passes its matrices through scratch memory.

Algebra and symbols as in chunked.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import RuleArguments
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import CHUNK, matmul, round_to, split_hi_lo
from sleep_kernels.triton_gdr_forward import RecomputedStates
from sleep_kernels.triton_gdr_intra import IntraChunk
from sleep_kernels.triton_gdr_intra_backward import intra_products, store_intra_gradients
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
        state_dot += tl.sum(state.to(tl.float32) * tl.load(d_states + at_v[None, :]))
        d_q += matmul(do, tl.trans(state), PRECISION)
    return d_q, state_dot


@triton.jit
def _key_state_gradients(dv, residuals, residuals_low, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr,
                         BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dr S^T and e dS'^T [C, BK]; states are pointers to rows [BK, 1], d_states to columns [1, BK] of their tiles.

    Not merged with the loop of _query_state_gradient, because the accumulators would not fit into registers. Loads are
    spread over the loop for the same reason.
    """
    d_k_state = tl.zeros((C, BK), tl.float32)
    d_k_beta = tl.zeros((C, BK), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        at_e = tl.arange(0, C)[:, None] * DV + at_v[None, :]
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        state = tl.load(states + at_v[None, :])
        d_k_state += matmul(dr, tl.trans(state), PRECISION)
        e = tl.load(residuals + at_e)
        high, low = split_hi_lo(tl.load(d_states + at_v[:, None]), residuals.dtype.element_ty)
        d_k_beta += matmul(e, high, PRECISION)
        if residuals.dtype.element_ty.primitive_bitwidth < 32:
            d_k_beta += matmul(e, low, PRECISION)
            d_k_beta += matmul(tl.load(residuals_low + at_e), high, PRECISION)
    return d_k_state, d_k_beta


@triton.jit
def _add_scratch_product(total, matrix, b, PRECISION: tl.constexpr):
    """total + D b for a matrix D [C, C] in scratch, its low part C * C elements after its high part."""
    total += matmul(tl.load(matrix), b, PRECISION)
    if b.dtype.primitive_bitwidth < 32:
        total += matmul(tl.load(matrix + C * C), b, PRECISION)
    return total


@triton.jit
def _add_transposed_scratch_product(total, matrix, b, PRECISION: tl.constexpr):
    """total + D^T b, as _add_scratch_product."""
    high = tl.load(matrix)
    total += matmul(tl.trans(high), b, PRECISION)
    if b.dtype.primitive_bitwidth < 32:
        low = tl.load(matrix + C * C)
        total += matmul(tl.trans(low), b, PRECISION)
    return total


@triton.jit
def _store_gate_gradients(dg, dbeta, d_c, d_beta, state_dot, part, rows, row, head, t, valid, HV: tl.constexpr):
    """Store dg and dbeta of a chunk and value head. The gradient of a cumulative sum is the reverse one in the chunk."""
    d_g = tl.cumsum(d_c, 0, reverse=True) + state_dot
    gates = (part * rows + row) * HV + head
    tl.store(dg + gates + t * HV, round_to(d_g, dg.dtype.element_ty), mask=valid)
    tl.store(dbeta + gates + t * HV, round_to(d_beta, dbeta.dtype.element_ty), mask=valid)


@kernel(do_not_specialize=["T", "rows"])
def chunk_bwd_dqk_kernel(
    q, k, grad_o, dv, g_cumsum, beta_fp32, states, residuals, residuals_low, d_states, scratch, dq, dk, dg, dbeta,
    T, rows, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk, sequence, key head and BK columns of q and k; rows = batch * time.

    scratch has 4 C^2 elements per program. dg and dbeta are [d_k / BK, batch, time, value_heads]: partial sums over the
    blocks of d_k.
    """
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
    scratch += tl.program_id(0).to(tl.int64) * (4 * C * C)
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
        first_e = (bh * n + chunk) * C * DV
        first_s = (bh * n + chunk) * DK * DV
        tile, mirrored = first_s + at_k[:, None] * DV, first_s + at_k[None, :] * DV
        c = tl.load(g_cumsum + tokens)
        last = tl.load(g_cumsum + bh * n * C + chunk * C + C - 1)
        beta = tl.load(beta_fp32 + tokens)
        do_e, dr_e = intra_products(
            do, dr, residuals + first_e, residuals_low + first_e, t, valid, HV * DV, DV, BV, PRECISION
        )
        qk_scores, kk_scores = matmul(queries, tl.trans(keys), PRECISION), matmul(keys, tl.trans(keys), PRECISION)
        d_c, d_beta = store_intra_gradients(do_e, dr_e, qk_scores, kk_scores, c, beta, scratch, scale)
        tl.debug_barrier()  # scratch is read below by other threads than those that wrote it
        decay_in = tl.exp2(c)[:, None]
        d_q, state_dot = _query_state_gradient(
            do, states + tile, d_states + tile, t, valid, HV * DV, DV, BK, BV, PRECISION
        )
        d_q *= decay_in * scale
        d_c += tl.sum(d_q * queries.to(tl.float32), 1)
        sum_q += d_q
        square = scratch + at[:, None] * C + at[None, :]
        sum_q = _add_scratch_product(sum_q, square, keys, PRECISION)
        if group == 1:  # stored here, so that it takes no registers below
            tl.store(dq + first_key + key, round_to(sum_q, dq.dtype.element_ty), mask=valid[:, None])
        sum_k = _add_scratch_product(sum_k, square + 2 * C * C, keys, PRECISION)
        d_k_state, d_k_beta = _key_state_gradients(
            dr, residuals + first_e, residuals_low + first_e, states + tile, d_states + mirrored, t, valid, HV * DV, DV,
            BK, BV, PRECISION,
        )  # fmt: skip
        d_k_state *= -decay_in
        d_k_beta *= tl.exp2(last - c)[:, None]
        d_beta_state = tl.sum(d_k_beta * keys.to(tl.float32), 1)
        # <S', dS'> = exp(c_C) <S, dS'> + <exp(c_C - c) kappa, e dS'^T>
        state_dot = state_dot * tl.exp2(last) + tl.sum(d_beta_state * beta)
        d_c += tl.sum(d_k_state * keys.to(tl.float32), 1) - beta * d_beta_state
        d_beta += d_beta_state
        sum_k += d_k_state + d_k_beta * beta[:, None]
        sum_k = _add_transposed_scratch_product(sum_k, square, queries, PRECISION)
        tl.debug_barrier()  # before the next value head overwrites scratch
        _store_gate_gradients(dg, dbeta, d_c, d_beta, state_dot, part, rows, row, head, t, valid, HV)
    if group > 1:
        tl.store(dq + first_key + key, round_to(sum_q, dq.dtype.element_ty), mask=valid[:, None])
    tl.store(dk + first_key + key, round_to(sum_k, dk.dtype.element_ty), mask=valid[:, None])


def chunk_bwd_dqk(
    args: RuleArguments,
    grad_o: Tensor,
    dv: Tensor,
    intra: IntraChunk,
    recomputed: RecomputedStates,
    d_states: Tensor,
    config: LaunchConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, g and beta."""
    q, k, g, beta = args.q, args.k, args.g, args.beta
    batch, time, key_heads, d_k = k.shape
    value_heads, d_v = dv.shape[2:]
    launch = config.chunk_bwd_dqk if value_heads == key_heads else config.chunk_bwd_dqk_grouped
    width = min(launch.width, d_k)
    parts, n = d_k // width, intra.inverse.shape[2]
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    partial = parts > 1 or g.dtype != beta.dtype
    gates = g.new_empty((2, parts, *g.shape), dtype=torch.float32 if partial else g.dtype)
    chunk_bwd_dqk_kernel[(batch * key_heads * n * parts,)](
        q,
        k,
        grad_o,
        dv,
        intra.g_cumsum,
        intra.beta_fp32,
        *recomputed,
        d_states,
        k.new_empty((batch * key_heads * n * parts, 4, CHUNK, CHUNK)),
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
