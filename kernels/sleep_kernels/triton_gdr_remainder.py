"""The gated delta rule in Triton, backward, last part: dq, dk, dg and dbeta of all chunks at once.

    remainder   one program per (chunk, key head, part of d_k). It goes over the value heads of its key head one after the
                other, so their sum needs no atomic addition and has one order.

What tokens of a chunk do to one another comes first (triton_gdr_pairs.py) and goes through memory.

Algebra and symbols as in chunked.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, matmul, narrow, split
from sleep_kernels.triton_gdr_chunks import Chunks
from sleep_kernels.triton_gdr_forward import Replayed
from sleep_kernels.triton_gdr_pairs import pair_gradients, store_pairs
from sleep_kernels.verified import Plan

C = tl.constexpr(CHUNK)


@triton.jit
def _reader_gradient(grad_o, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr,
                     BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """do S^T [C, BK] and <S, dS'>; states and d_states point at rows of their tiles [BK, 1]."""
    d_q = tl.zeros((C, BK), tl.float32)
    held = 0.0
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        state = tl.load(states + at_v[None, :])
        held += tl.sum(state.to(tl.float32) * tl.load(d_states + at_v[None, :]))
        d_q += matmul(do, tl.trans(state), PRECISION)
    return d_q, held


@triton.jit
def _writer_gradients(dv, residuals, residuals_low, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr,
                      BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dr S^T and e dS'^T [C, BK]; states point at rows of their tile [BK, 1], d_states at columns of theirs [1, BK].

    In one loop with _reader_gradient the accumulators would not fit into the registers, nor would all that is loaded here
    if it were loaded at once.
    """
    d_x = tl.zeros((C, BK), tl.float32)
    d_kappa = tl.zeros((C, BK), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        at_e = tl.arange(0, C)[:, None] * DV + at_v[None, :]
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        state = tl.load(states + at_v[None, :])
        d_x += matmul(dr, tl.trans(state), PRECISION)
        e = tl.load(residuals + at_e)
        high, low = split(tl.load(d_states + at_v[:, None]), residuals.dtype.element_ty)
        d_kappa += matmul(e, high, PRECISION)
        if residuals.dtype.element_ty.primitive_bitwidth < 32:
            d_kappa += matmul(e, low, PRECISION)
            d_kappa += matmul(tl.load(residuals_low + at_e), high, PRECISION)
    return d_x, d_kappa


@triton.jit(do_not_specialize=["T", "rows"])
def remainder_kernel(
    q, k, grad_o, dv, running, strength, states, residuals, residuals_low, d_states, scratch, dq, dk, dg, dbeta,
    T, rows, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk, sequence, key head and BK columns of q and k; rows = batch * time.

    scratch is 4 C^2 elements a program. dg and dbeta are [d_k / BK, batch, time, value_heads]: a part of d_k contributes
    a part of them.
    """
    DTYPE: tl.constexpr = k.dtype.element_ty
    n = tl.cdiv(T, C)
    pieces: tl.constexpr = DK // BK
    group: tl.constexpr = HV // H
    piece = tl.program_id(0) % pieces
    chunk = tl.program_id(0) // pieces % n
    key_lane = (tl.program_id(0) // (pieces * n)).to(tl.int64)
    row = key_lane // H * T
    at = tl.arange(0, C)
    at_k = piece * BK + tl.arange(0, BK)
    t = chunk * C + at
    valid = t < T
    scratch += tl.program_id(0).to(tl.int64) * (4 * C * C)
    first_key = (row * H + key_lane % H) * DK
    key = t[:, None] * (H * DK) + at_k[None, :]
    queries = tl.load(q + first_key + key, mask=valid[:, None], other=0.0)
    keys = tl.load(k + first_key + key, mask=valid[:, None], other=0.0)
    sum_q = tl.zeros((C, BK), tl.float32)
    sum_k = tl.zeros((C, BK), tl.float32)
    # What the compiler hoists out of this loop would be spilled in it.
    for member in tl.range(0, group, disable_licm=True):
        head = (key_lane % H) * group + member
        lane = key_lane // H * HV + head
        tokens = lane * n * C + t
        # Large offsets are added to the pointers, so that those of a tile's elements fit into 32 bits.
        do = grad_o + (row * HV + head) * DV
        dr = dv + (row * HV + head) * DV
        first_e = (lane * n + chunk) * C * DV
        first_s = (lane * n + chunk) * DK * DV
        tile, mirrored = first_s + at_k[:, None] * DV, first_s + at_k[None, :] * DV
        c = tl.load(running + tokens)
        last = tl.load(running + lane * n * C + chunk * C + C - 1)
        beta = tl.load(strength + tokens)
        read, erase = pair_gradients(
            do, dr, residuals + first_e, residuals_low + first_e, t, valid, HV * DV, DV, BV, PRECISION
        )
        asked, alike = matmul(queries, tl.trans(keys), PRECISION), matmul(keys, tl.trans(keys), PRECISION)
        d_c, d_beta = store_pairs(read, erase, asked, alike, c, beta, scratch, scale)
        # The program's threads read here what others of them wrote.
        tl.debug_barrier()
        into = tl.exp2(c)[:, None]
        d_q, held = _reader_gradient(do, states + tile, d_states + tile, t, valid, HV * DV, DV, BK, BV, PRECISION)
        d_q *= into * scale
        d_c += tl.sum(d_q * queries.to(tl.float32), 1)
        sum_q += d_q
        square = scratch + at[:, None] * C + at[None, :]
        sum_q += matmul(tl.load(square), keys, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            sum_q += matmul(tl.load(square + C * C), keys, PRECISION)
        if group == 1:  # at once, so that it need not be held
            tl.store(dq + first_key + key, narrow(sum_q, dq.dtype.element_ty), mask=valid[:, None])
        sum_k += matmul(tl.load(square + 2 * C * C), keys, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            sum_k += matmul(tl.load(square + 3 * C * C), keys, PRECISION)
        d_x, d_kappa = _writer_gradients(
            dr, residuals + first_e, residuals_low + first_e, states + tile, d_states + mirrored, t, valid, HV * DV, DV,
            BK, BV, PRECISION,
        )  # fmt: skip
        d_x *= -into
        d_kappa *= tl.exp2(last - c)[:, None]
        taken = tl.sum(d_kappa * keys.to(tl.float32), 1)
        # <S', dS'> = exp(c_C) <S, dS'> + <exp(c_C - c) kappa, e dS'^T>
        held = held * tl.exp2(last) + tl.sum(taken * beta)
        d_c += tl.sum(d_x * keys.to(tl.float32), 1) - beta * taken
        d_beta += taken
        sum_k += d_x + d_kappa * beta[:, None]
        d_asked = tl.load(square)
        sum_k += matmul(tl.trans(d_asked), queries, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            d_asked_low = tl.load(square + C * C)
            sum_k += matmul(tl.trans(d_asked_low), queries, PRECISION)
        tl.debug_barrier()  # before the next member writes there
        # The adjoint of a running sum is the sum from here to the chunk's end.
        d_g = tl.cumsum(d_c, 0, reverse=True) + held
        gates = (piece * rows + row) * HV + head
        tl.store(dg + gates + t * HV, narrow(d_g, dg.dtype.element_ty), mask=valid)
        tl.store(dbeta + gates + t * HV, narrow(d_beta, dbeta.dtype.element_ty), mask=valid)
    if group > 1:
        tl.store(dq + first_key + key, narrow(sum_q, dq.dtype.element_ty), mask=valid[:, None])
    tl.store(dk + first_key + key, narrow(sum_k, dk.dtype.element_ty), mask=valid[:, None])


def remainder(
    grad_o: Tensor,
    dv: Tensor,
    q: Tensor,
    k: Tensor,
    g: Tensor,
    beta: Tensor,
    chunks: Chunks,
    replayed: Replayed,
    d_states: Tensor,
    scale: float,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, g and beta."""
    batch, time, key_heads, d_k = k.shape
    value_heads, d_v = dv.shape[2:]
    launch = plan.remainder if value_heads == key_heads else plan.remainder_grouped
    width = min(launch.width, d_k)
    pieces, n = d_k // width, chunks.inverse.shape[2]
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    gates = [t.new_empty((pieces, *t.shape), dtype=t.dtype if pieces == 1 else torch.float32) for t in (g, beta)]
    remainder_kernel[(batch * key_heads * n * pieces,)](
        q,
        k,
        grad_o,
        dv,
        chunks.running,
        chunks.strength,
        *replayed,
        d_states,
        k.new_empty((batch * key_heads * n * pieces, 4, CHUNK, CHUNK)),
        dq,
        dk,
        *gates,
        time,
        batch * time,
        scale,
        H=key_heads,
        HV=value_heads,
        DK=d_k,
        DV=d_v,
        BK=width,
        BV=min(launch.block, d_v),
        PRECISION=plan.precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if pieces == 1:
        return dq, dk, gates[0][0], gates[1][0]
    return dq, dk, gates[0].sum(0).to(g.dtype), gates[1].sum(0).to(beta.dtype)
