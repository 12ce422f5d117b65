"""The gated delta rule in Triton, backward: replay the states, sweep back their adjoints, then all the rest at once.

Algebra and symbols as in chunked.py. Inputs alone were kept, so `invert`, `score` and `sweep` (REPLAY) of the forward run
first; `remainder` (triton_gdr_remainder.py) comes last:

    reverse     one program per (sequence, value head, part of d_v) walks back over the chunks with dS in registers and
                writes dv = dr, dS' after each chunk and dS of the initial state
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import CHUNK, matmul, narrow, split
from sleep_kernels.triton_gdr_chunks import Chunks, prepare
from sleep_kernels.triton_gdr_forward import replay
from sleep_kernels.triton_gdr_remainder import remainder
from sleep_kernels.verified import Launch, Plan

C = tl.constexpr(CHUNK)


@triton.jit(do_not_specialize=["T"])
def reverse_kernel(
    q, k, grad_o, inverse, running, strength, scores, scores_low, grad_state, dv, d_states, d_initial, T, scale,
    H: tl.constexpr, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    HAS_GRAD_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per sequence, value head and BV columns of dS.

    Writes dv, d_states [batch, value_heads, n, d_k, d_v] after each chunk in the dtype of k, and d_initial in float32.
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
        held = narrow(d_state, DTYPE)
        tl.store(d_states + (lane * n + i) * DK * DV + tile, held)
        d_written = matmul(keys, held, PRECISION) * tl.exp2(last - c)[:, None]
        d_written += matmul(tl.trans(p), do, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            p_low = tl.load(scores_low + square)
            d_written += matmul(tl.trans(p_low), do, PRECISION)
        high, low = split(d_written * beta[:, None], DTYPE)
        dr = matmul(tl.trans(a), high, PRECISION)
        if DTYPE.primitive_bitwidth < 32:
            dr += matmul(tl.trans(a), low, PRECISION)
        tl.store(dv + t[:, None] * (HV * DV) + at_v[None, :], narrow(dr, DTYPE), mask=valid)
        into = tl.exp2(c)[:, None]
        d_state = d_state * tl.exp2(last)
        d_state += matmul(tl.trans(queries), narrow(do * (into * scale), DTYPE), PRECISION)
        d_state += matmul(tl.trans(keys), narrow(dr * -into, DTYPE), PRECISION)
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
    states, residuals = replay(k, v, chunks, initial_state, plan.replay, plan.precision)
    dv, d_states, d_initial = _reverse(grad_o, grad_state, q, k, chunks, scale, plan.reverse, plan.precision)
    dq, dk, dg, dbeta = remainder(grad_o, dv, q, k, g, beta, chunks, states, residuals, d_states, scale, plan)
    return dq, dk, dv, dg, dbeta, d_initial


def _reverse(
    grad_o: Tensor,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    chunks: Chunks,
    scale: float,
    launch: Launch,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dv, the adjoints of the states after each chunk, and that of the initial state."""
    batch, time, value_heads, d_v = grad_o.shape
    d_k, n, block = k.shape[3], chunks.inverse.shape[2], min(launch.block, d_v)
    dv = torch.empty_like(grad_o)
    d_states = k.new_empty((batch, value_heads, n, d_k, d_v))
    d_initial = k.new_empty((batch, value_heads, d_k, d_v), dtype=torch.float32)
    reverse_kernel[(batch * value_heads * (d_v // block),)](
        q,
        k,
        grad_o,
        *chunks,
        chunks.running if grad_state is None else grad_state,
        dv,
        d_states,
        d_initial,
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
    return dv, d_states, d_initial
