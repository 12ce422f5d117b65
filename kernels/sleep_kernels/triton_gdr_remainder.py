"""The gated delta rule in Triton, backward, last part: dq, dk, dg and dbeta of all chunks at once.

    remainder   one program per (chunk, key head, part of d_k). It goes over the value heads of its key head one after the
                other, so their sum needs no atomic addition and has one order. With D_q = (do e^T) * G and
                D_k = -(dr e^T) * G neither q k^T nor k k^T is needed again; their transposes are products of their own,
                since no product is transposed here (see triton_common.py).

Algebra and symbols as in chunked.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, decay_between, matmul, narrow
from sleep_kernels.triton_gdr_chunks import Chunks
from sleep_kernels.verified import Plan

C = tl.constexpr(CHUNK)


@triton.jit
def _score_gradients(grad_o, dv, residuals, t, valid, row: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """do e^T and dr e^T [C, C], each with its transpose: what every part of d_k needs. Pointers at a head's first element."""
    read = tl.zeros((C, C), tl.float32)
    read_t = tl.zeros((C, C), tl.float32)
    erase = tl.zeros((C, C), tl.float32)
    erase_t = tl.zeros((C, C), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        e = tl.load(residuals + tl.arange(0, C)[:, None] * DV + at_v[None, :])
        read += matmul(do, tl.trans(e), PRECISION)
        read_t += matmul(e, tl.trans(do), PRECISION)
        erase += matmul(dr, tl.trans(e), PRECISION)
        erase_t += matmul(e, tl.trans(dr), PRECISION)
    return read, read_t, erase, erase_t


@triton.jit
def _state_gradients(grad_o, dv, residuals, states, d_states, t, valid, row: tl.constexpr, DV: tl.constexpr,
                     BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """do S^T, dr S^T and e dS'^T [C, BK], and <S, dS'>; states and d_states point at rows of their tiles [BK, 1]."""
    d_q = tl.zeros((C, BK), tl.float32)
    d_x = tl.zeros((C, BK), tl.float32)
    d_kappa = tl.zeros((C, BK), tl.float32)
    held = 0.0
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        e = tl.load(residuals + tl.arange(0, C)[:, None] * DV + at_v[None, :])
        state = tl.load(states + at_v[None, :])
        d_state = tl.load(d_states + at_v[None, :])
        d_q += matmul(do, tl.trans(state), PRECISION)
        d_x += matmul(dr, tl.trans(state), PRECISION)
        d_kappa += matmul(e, tl.trans(d_state), PRECISION)
        held += tl.sum(state.to(tl.float32) * d_state.to(tl.float32))
    return d_q, d_x, d_kappa, held


@triton.jit(do_not_specialize=["T", "rows"])
def remainder_kernel(
    q, k, grad_o, dv, running, strength, states, residuals, d_states, dq, dk, dg, dbeta, T, rows, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per chunk, sequence, key head and BK columns of q and k; rows = batch * time.

    dg and dbeta are [d_k / BK, batch, time, value_heads]: a part of d_k contributes a part of them.
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
        c = tl.load(running + lane * n * C + t)
        last = tl.load(running + lane * n * C + chunk * C + C - 1)
        beta = tl.load(strength + lane * n * C + t)
        into = tl.exp2(c)[:, None]
        # Large offsets are added to the pointers, so that those of a tile's elements fit into 32 bits.
        do = grad_o + (row * HV + head) * DV
        dr = dv + (row * HV + head) * DV
        e = residuals + (lane * n + chunk) * C * DV
        tile = (lane * n + chunk) * DK * DV + at_k[:, None] * DV
        # In one loop the accumulators of both would not fit into the registers.
        read, read_t, erase, erase_t = _score_gradients(do, dr, e, t, valid, HV * DV, DV, BV, PRECISION)
        gate = decay_between(c[:, None], c[None, :], at[:, None] >= at[None, :])
        gate_t = decay_between(c[None, :], c[:, None], at[:, None] <= at[None, :])
        read = narrow(read * (gate * scale), DTYPE)
        read_t = narrow(read_t * (gate_t * scale), DTYPE)
        erase = narrow(tl.where(at[:, None] > at[None, :], -erase * gate, 0.0), DTYPE)
        erase_t = narrow(tl.where(at[:, None] < at[None, :], -erase_t * gate_t, 0.0), DTYPE)
        d_q, d_x, d_kappa, held = _state_gradients(
            do, dr, e, states + tile, d_states + tile, t, valid, HV * DV, DV, BK, BV, PRECISION
        )
        # In dc what one token reads of another is added at the one and taken off at the other. The same rounded kappa,
        # D_q and D_k stand on both sides, so that what is left in the sum over the chunk is not their rounding.
        kappa = narrow(keys * beta[:, None], DTYPE)
        d_q = d_q * (into * scale) + matmul(read, kappa, PRECISION)
        d_c = tl.sum(d_q * queries.to(tl.float32), 1)
        sum_q += d_q
        d_x = d_x * -into + matmul(erase, kappa, PRECISION)
        d_c += tl.sum(d_x * keys.to(tl.float32), 1)
        sum_k += d_x
        d_kappa = d_kappa * tl.exp2(last - c)[:, None]
        # <S', dS'> = exp(c_C) <S, dS'> + <exp(c_C - c) kappa, e dS'^T>
        held = held * tl.exp2(last) + tl.sum(d_kappa * kappa.to(tl.float32))
        d_kappa += matmul(read_t, queries, PRECISION)
        d_kappa += matmul(erase_t, keys, PRECISION)
        d_c -= tl.sum(d_kappa * kappa.to(tl.float32), 1)
        d_beta = tl.sum(d_kappa * keys.to(tl.float32), 1)
        sum_k += d_kappa * beta[:, None]
        # The adjoint of a running sum is the sum from here to the chunk's end.
        d_g = tl.cumsum(d_c, 0, reverse=True) + held
        gates = (piece * rows + row) * HV + head
        tl.store(dg + gates + t * HV, narrow(d_g, dg.dtype.element_ty), mask=valid)
        tl.store(dbeta + gates + t * HV, narrow(d_beta, dbeta.dtype.element_ty), mask=valid)
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
    states: Tensor,
    residuals: Tensor,
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
        states,
        residuals,
        d_states,
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
