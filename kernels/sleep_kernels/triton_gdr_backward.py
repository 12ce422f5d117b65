"""The gated delta rule in Triton, backward: replay the states, sweep back their adjoints, then all the rest at once.

Algebra and symbols as in chunked.py. Inputs alone were kept, so `invert`, `score` and `sweep` (REPLAY) of the forward run
first; `remainder` (triton_gdr_remainder.py) comes last:

    reverse     one program per (sequence, value head, part of d_v) walks back over the chunks with dS in registers and
                writes dv = dr, dS' after each chunk and dS of the initial state

In bfloat16, what is computed enters a product as two numbers (e, dS', D_q, D_k, P, and in the sweeps all that A, q and k
multiply) or is exact (q, k, v, do); A, S and dr alone are rounded. Traffic to memory per token and head at d = 128, each
tile counted once a kernel: 9.3 KB, of which 2.0 KB are the second numbers of e and dS' and the D; forward 2.6 KB.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, add_product, matmul, narrow
from sleep_kernels.triton_gdr_chunks import Chunks, prepare
from sleep_kernels.triton_gdr_forward import replay
from sleep_kernels.triton_gdr_remainder import remainder
from sleep_kernels.verified import Launch, Plan

C = tl.constexpr(CHUNK)


class Adjoints(NamedTuple):
    """What `reverse` writes, all but dv in float32; n chunks of 64."""

    dv: Tensor  # [batch, time, value_heads, d_v]
    d_states: Tensor  # [batch, value_heads, n, d_k, d_v]  dS' after each chunk
    d_initial: Tensor  # [batch, value_heads, d_k, d_v]


@triton.jit(do_not_specialize=["T"])
def reverse_kernel(
    q, k, grad_o, inverse, running, strength, scores, scores_low, grad_state, dv, d_states, d_initial, T, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    HAS_GRAD_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per sequence, value head and BV columns of dS.

    Writes what Adjoints holds.
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
    grad_o += (row * HV + head) * DV
    dv += (row * HV + head) * DV
    inverse += lane * n * C * C
    scores += lane * n * C * C
    scores_low += lane * n * C * C
    running += lane * n * C
    strength += lane * n * C
    tile = at_k[:, None] * DV + at_v[None, :]
    if HAS_GRAD_STATE:  # noqa: SIM108
        d_state = tl.load(grad_state + lane * DK * DV + tile)
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
        c = tl.load(running + t)
        last = tl.load(running + i * C + C - 1)
        beta = tl.load(strength + t)
        tl.store(d_states + (lane * n + i) * DK * DV + tile, d_state)
        d_written = add_product(tl.zeros((C, BV), tl.float32), keys, d_state, PRECISION) * tl.exp2(last - c)[:, None]
        d_written += matmul(tl.trans(p), do, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            p_low = tl.load(scores_low + square)
            d_written += matmul(tl.trans(p_low), do, PRECISION)
        dr = add_product(tl.zeros((C, BV), tl.float32), tl.trans(a), d_written * beta[:, None], PRECISION)
        tl.store(dv + t[:, None] * (HV * DV) + at_v[None, :], narrow(dr, DTYPE), mask=valid)
        into = tl.exp2(c)[:, None]
        d_state = d_state * tl.exp2(last)
        d_state = add_product(d_state, tl.trans(queries), do * (into * scale), PRECISION)
        d_state = add_product(d_state, tl.trans(keys), dr * -into, PRECISION)
    tl.store(d_initial + lane * DK * DV + tile, d_state)


def backward(
    grad_o: Tensor | None,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    scale: float,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state, from those of the outputs (None means zero).

    All tensors contiguous; the rest as in `sleep_kernels.gated_delta_rule`, already checked.
    """
    if grad_o is None:
        grad_o = torch.zeros_like(v)
    chunks = prepare(q, k, g, beta, scale, plan)
    replayed = replay(k, v, chunks, initial_state, plan.replay, plan.precision)
    back = _reverse(grad_o, grad_state, q, k, chunks, scale, plan.reverse, plan.precision)
    dq, dk, dg, dbeta = remainder(grad_o, back.dv, q, k, g, beta, chunks, replayed, back.d_states, scale, plan)
    return dq, dk, back.dv, dg, dbeta, back.d_initial


def _reverse(
    grad_o: Tensor,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    chunks: Chunks,
    scale: float,
    launch: Launch,
    precision: str,
) -> Adjoints:
    batch, time, value_heads, d_v = grad_o.shape
    d_k, n, block = k.shape[3], chunks.inverse.shape[2], min(launch.block, d_v)
    d_states = k.new_empty((batch, value_heads, n, d_k, d_v), dtype=torch.float32)
    back = Adjoints(torch.empty_like(grad_o), d_states, torch.empty_like(d_states[:, :, 0]))
    reverse_kernel[(batch * value_heads * (d_v // block),)](
        q,
        k,
        grad_o,
        *chunks,
        chunks.running if grad_state is None else grad_state,
        *back,
        time,
        scale,
        H=k.shape[2],
        HV=value_heads,
        DK=d_k,
        DV=d_v,
        BV=block,
        HAS_GRAD_STATE=grad_state is not None,
        PRECISION=precision,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return back
