"""What stands before the gated delta rule, backward, in one launch: from the rule's gradients to the projections'.

Positions as in triton_prep.py. The convolution is computed again, once for each tap: that reads cached inputs and writes
nothing in between.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import narrow
from sleep_kernels.triton_prep import (
    EPS,
    constants_of,
    convolve,
    is_body,
    pointers,
    row_of,
    softplus,
    source_of,
    tokens,
)

# Tokens of a program: the more, the fewer parts of the taps' gradients to add up.
_TOKENS = 64


@triton.jit
def _d_convolution(x, x_row, tail, tail_row, order, weight, dy, p, T, K: tl.constexpr, HAS_TAIL: tl.constexpr,
                   PACKED: tl.constexpr, at, NORM: tl.constexpr):  # fmt: skip
    """The adjoint of the convolution's result at p, 0 where that is no real token of x."""
    z = convolve(x, x_row, tail, tail_row, order, weight, p, T, K, HAS_TAIL, PACKED, at)
    s = source_of(order, p, T, K, PACKED)
    body = is_body(s, T, K)[:, None]
    grad = tl.load(dy + (s - (K - 1))[:, None] * x_row + at[None, :], mask=body, other=0.0).to(tl.float32)
    share = tl.sigmoid(z)
    if NORM:
        value = z * share
        inverse = tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
        normal = value * inverse
        grad = (grad - normal * tl.sum(grad * normal, 1)[:, None]) * inverse
    return tl.where(body, grad * share * (1 + z * (1 - share)), 0.0)


@triton.jit
def _part_backward(x, x_row, tail, tail_row, order, weight, dy, d_new_tail, dx, d_tail, d_weight, first, T,
                   D: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr,
                   HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """Gradients of BT * STEPS positions from `first` on, and their part of the taps' gradients."""
    at = tl.arange(0, D)
    tap = tl.arange(0, TAPS)[:, None]
    d_taps = tl.zeros((TAPS, D), tl.float32)
    for step in range(STEPS):
        p = first + step * BT + tl.arange(0, BT)
        carried = ((p >= T) & (p < T + K - 1))[:, None]
        total = tl.load(d_new_tail + (p - T)[:, None] * tail_row + at[None, :], mask=carried, other=0.0).to(tl.float32)
        here = tokens(x, x_row, tail, tail_row, order, p, T, K, HAS_TAIL, PACKED, at)
        for j in tl.static_range(K):
            # The output at p + (K - 1) - j read position p with tap j.
            dz = _d_convolution(
                x, x_row, tail, tail_row, order, weight, dy, p + (K - 1) - j, T, K, HAS_TAIL, PACKED, at, NORM
            )
            total += dz * tl.load(weight + at * K + j).to(tl.float32)[None, :]
            d_taps += tl.where(tap == j, tl.sum(dz * here, 0)[None, :], 0.0)
        s = source_of(order, p, T, K, PACKED)
        row = row_of(s, K, PACKED)
        inside = ((row >= 0) & (row < T))[:, None]
        # Padding was moved before everything else, so that no output read it: its `total` is 0.
        tl.store(dx + row[:, None] * x_row + at[None, :], narrow(total, dx.dtype.element_ty), mask=inside)
        head = ((s >= 0) & (s < K - 1))[:, None]
        tl.store(d_tail + s[:, None] * tail_row + at[None, :], narrow(total, d_tail.dtype.element_ty), mask=head)
    tl.store(d_weight + at[None, :] * K + tap, d_taps, mask=tap < K)


@triton.jit(do_not_specialize=["T"])
def prep_backward_kernel(
    q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail, order, dq_out, dk_out, dv_out, dg, dbeta, d_new_tail,
    dq, dk, dv, da, db, d_conv, d_a_log, d_dt_bias, d_tail, T, strength, H: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr,
    HAS_TAIL: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """One program per BT * STEPS positions of cat(tail, x) and key head; TAPS is K rounded up to a power of two.

    d_conv [batch * blocks, all channels of q, k, v, K], d_a_log and d_dt_bias [batch * blocks, H * R] are the programs'
    parts.
    """
    blocks = tl.cdiv(T + K - 1, BT * STEPS)
    block = tl.program_id(0) % blocks
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = lane // H, lane % H
    first = block * (BT * STEPS)
    order += row * (T + K - 1)
    width: tl.constexpr = H * (2 + R) * D
    tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_new_tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_conv += (row * blocks + block) * width * K
    key = (row * T * H + head) * D
    weight = head * D * K
    _part_backward(q + key, H * D, tail, width, order, conv_q + weight, dq_out + key, d_new_tail, dq + key, d_tail,
                   d_conv + weight, first, T, D, K, TAPS, BT, STEPS, HAS_TAIL, PACKED, True)  # fmt: skip
    d_conv += H * D * K
    _part_backward(k + key, H * D, tail + D, width, order, conv_k + weight, dk_out + key, d_new_tail + D, dk + key,
                   d_tail + D, d_conv + weight, first, T, D, K, TAPS, BT, STEPS, HAS_TAIL, PACKED, True)  # fmt: skip
    d_conv += H * D * K
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        part = (2 + r) * D
        weight = value_head * D * K
        _part_backward(v + value, H * R * D, tail + part, width, order, conv_v + weight, dv_out + value,
                       d_new_tail + part, dv + value, d_tail + part, d_conv + weight, first, T,
                       D, K, TAPS, BT, STEPS, HAS_TAIL, PACKED, False)  # fmt: skip
        rate = -tl.exp(tl.load(a_log + value_head).to(tl.float32))
        bias = tl.load(dt_bias + value_head).to(tl.float32)
        d_rate, d_bias = 0.0, 0.0
        for step in range(STEPS):
            s = source_of(order, first + step * BT + tl.arange(0, BT), T, K, PACKED)
            t = row_of(s, K, PACKED)
            inside = (t >= 0) & (t < T)
            real = is_body(s, T, K)
            gates = row * T * H * R + t * (H * R) + value_head
            speed = tl.load(a + gates, mask=real, other=0.0).to(tl.float32) + bias
            d_decay = tl.load(dg + gates, mask=real, other=0.0).to(tl.float32)
            d_speed = d_decay * rate * tl.sigmoid(speed)
            share = tl.sigmoid(tl.load(b + gates, mask=real, other=0.0).to(tl.float32))
            d_share = strength * tl.load(dbeta + gates, mask=real, other=0.0).to(tl.float32)
            tl.store(da + gates, narrow(d_speed, da.dtype.element_ty), mask=inside)
            tl.store(db + gates, narrow(d_share * share * (1 - share), db.dtype.element_ty), mask=inside)
            d_rate += tl.sum(d_decay * rate * softplus(speed))
            d_bias += tl.sum(d_speed)
        sums = (row * blocks + block) * (H * R) + value_head
        tl.store(d_a_log + sums, d_rate)
        tl.store(d_dt_bias + sums, d_bias)


def backward(grads: list[Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of the ten tensors before the tail, and of the tail, from those of the results; the rest as `forward`."""
    *inputs, key_heads, strength, launch = arguments
    constants = constants_of(inputs, key_heads, launch)
    (batch, time, _), heads, kernel = inputs[0].shape, inputs[3].shape[2], constants["K"]
    steps = triton.cdiv(_TOKENS, launch.block)
    blocks = triton.cdiv(time + kernel - 1, launch.block * steps)
    channels = [t.shape[2] for t in inputs[:3]]
    rows = [torch.empty_like(t) for t in inputs[:5]]
    d_conv = inputs[0].new_empty((batch * blocks, sum(channels), kernel), dtype=torch.float32)
    d_a_log, d_dt_bias = (d_conv.new_empty((batch * blocks, heads)) for _ in range(2))
    d_tail = torch.empty_like(grads[5])
    prep_backward_kernel[(batch * key_heads * blocks,)](
        *pointers(inputs),
        *grads,
        *rows,
        d_conv,
        d_a_log,
        d_dt_bias,
        d_tail,
        time,
        strength,
        TAPS=triton.next_power_of_2(kernel),
        STEPS=steps,
        **constants,
    )
    d_convs = (part.to(weight.dtype) for part, weight in zip(d_conv.sum(0).split(channels), inputs[5:8], strict=True))
    d_heads = (part.sum(0).to(t.dtype) for part, t in ((d_a_log, inputs[8]), (d_dt_bias, inputs[9])))
    return *rows, *d_convs, *d_heads, d_tail
