"""What stands before the gated delta rule, in one launch each way: convolution, SiLU, L2 norm and gates, in Triton.

Positions p run over cat(tail, x), so that the tail's tokens are the first K - 1 of them; output t reads p = t ... t + K - 1.
Backward computes the convolution again, once for each tap: it reads cached inputs and writes nothing in between.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import narrow
from sleep_kernels.verified import Launch

EPS = tl.constexpr(1e-6)
# Tokens of a program of the backward: the more, the fewer parts of the taps' gradients to add up.
_TOKENS = 64


@triton.jit
def _inputs(x, tail, p, T, channels: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr, at):
    """cat(tail, x)[p, at] in float32; p outside of it reads 0. x and tail point at the sequence's first element."""
    inside = ((p >= K - 1) & (p < T + K - 1))[:, None]
    value = tl.load(x + (p - (K - 1))[:, None] * channels + at[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_TAIL:
        before = ((p >= 0) & (p < K - 1))[:, None]
        value += tl.load(tail + p[:, None] * channels + at[None, :], mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def _convolve(x, tail, weight, t, T, channels: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr, at):
    """sum_j weight[at, j] p[t + j]."""
    z = _inputs(x, tail, t, T, channels, K, HAS_TAIL, at) * tl.load(weight + at * K).to(tl.float32)[None, :]
    for j in tl.static_range(1, K):
        tap = tl.load(weight + at * K + j).to(tl.float32)[None, :]
        z += _inputs(x, tail, t + j, T, channels, K, HAS_TAIL, at) * tap
    return z


@triton.jit
def _part(x, tail, weight, y, y_row, t, T, channels: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr, at, wide,
          NORM: tl.constexpr):  # fmt: skip
    """One head's output rows: silu of the convolution, L2-normed or not; y points at the head's first element."""
    z = _convolve(x, tail, weight, t, T, channels, K, HAS_TAIL, at)
    value = z * tl.sigmoid(z)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
    tl.store(y + t[:, None] * y_row + wide[None, :], narrow(value, y.dtype.element_ty), mask=(t < T)[:, None])


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), linear beyond 20 as in torch."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit(do_not_specialize=["T"])
def prep_kernel(
    x,
    a,
    b,
    weight,
    a_log,
    dt_bias,
    tail,
    q,
    k,
    v,
    g,
    beta,
    new_tail,
    T,
    H: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    """One program per BT tokens and key head. Channels of x: for each key head q, k and then its R value heads."""
    channels: tl.constexpr = H * (2 + R) * D
    blocks = tl.cdiv(T, BT)
    block = tl.program_id(0) % blocks
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = lane // H, lane % H
    x += row * T * channels
    tail += row * (K - 1) * channels
    new_tail += row * (K - 1) * channels
    t = block * BT + tl.arange(0, BT)
    wide = tl.arange(0, D)
    at = head * ((2 + R) * D) + wide
    key = (row * T * H + head) * D
    _part(x, tail, weight, q + key, H * D, t, T, channels, K, HAS_TAIL, at, wide, True)
    _part(x, tail, weight, k + key, H * D, t, T, channels, K, HAS_TAIL, at + D, wide, True)
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        _part(x, tail, weight, v + value, H * R * D, t, T, channels, K, HAS_TAIL, at + (2 + r) * D, wide, False)
        gates = row * T * H * R + t * (H * R) + value_head
        step = tl.load(a + gates, mask=t < T, other=0.0).to(tl.float32) + tl.load(dt_bias + value_head).to(tl.float32)
        decay = -tl.exp(tl.load(a_log + value_head).to(tl.float32)) * _softplus(step)
        strength = tl.sigmoid(tl.load(b + gates, mask=t < T, other=0.0).to(tl.float32))
        tl.store(g + gates, decay, mask=t < T)
        tl.store(beta + gates, strength, mask=t < T)
    if block == blocks - 1:
        for j in tl.static_range(K - 1):
            p = T + j + tl.zeros((1,), tl.int32)
            for unit in range(2 + R):
                last = _inputs(x, tail, p, T, channels, K, HAS_TAIL, at + unit * D)
                out = new_tail + j * channels + (at + unit * D)[None, :]
                tl.store(out, narrow(last, new_tail.dtype.element_ty))


@triton.jit
def _d_convolution(x, tail, weight, dy, dy_row, t, T, channels: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr, at,
                   wide, NORM: tl.constexpr):  # fmt: skip
    """The adjoint of the convolution's result in rows t, 0 outside 0 ... T - 1."""
    inside = ((t >= 0) & (t < T))[:, None]
    z = _convolve(x, tail, weight, t, T, channels, K, HAS_TAIL, at)
    grad = tl.load(dy + t[:, None] * dy_row + wide[None, :], mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(z)
    if NORM:
        value = z * share
        inverse = tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
        normal = value * inverse
        grad = (grad - normal * tl.sum(grad * normal, 1)[:, None]) * inverse
    return tl.where(inside, grad * share * (1 + z * (1 - share)), 0.0)


@triton.jit
def _part_backward(x, tail, weight, dy, dy_row, d_new_tail, dx, d_tail, d_weight, first, T, channels: tl.constexpr,
                   K: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr, HAS_TAIL: tl.constexpr,
                   HAS_GRAD_TAIL: tl.constexpr, at, wide, NORM: tl.constexpr):  # fmt: skip
    """Gradients of BT * STEPS positions of cat(tail, x) from `first` on, and their part of the taps' gradients."""
    tap = tl.arange(0, TAPS)[:, None]
    d_taps = tl.zeros((TAPS, wide.shape[0]), tl.float32)
    for step in range(STEPS):
        s = first + step * BT + tl.arange(0, BT)
        total = tl.zeros((BT, wide.shape[0]), tl.float32)
        if HAS_GRAD_TAIL:
            carried = ((s >= T) & (s < T + K - 1))[:, None]
            from_tail = tl.load(d_new_tail + (s - T)[:, None] * channels + at[None, :], mask=carried, other=0.0)
            total += from_tail.to(tl.float32)
        here = _inputs(x, tail, s, T, channels, K, HAS_TAIL, at)
        for j in tl.static_range(K):
            # Output s - j read position s with tap j.
            dz = _d_convolution(x, tail, weight, dy, dy_row, s - j, T, channels, K, HAS_TAIL, at, wide, NORM)
            total += dz * tl.load(weight + at * K + j).to(tl.float32)[None, :]
            d_taps += tl.where(tap == j, tl.sum(dz * here, 0)[None, :], 0.0)
        body = ((s >= K - 1) & (s < T + K - 1))[:, None]
        tl.store(dx + (s - (K - 1))[:, None] * channels + at[None, :], narrow(total, dx.dtype.element_ty), mask=body)
        head = (s < K - 1)[:, None]
        tl.store(d_tail + s[:, None] * channels + at[None, :], narrow(total, d_tail.dtype.element_ty), mask=head)
    tl.store(d_weight + at[None, :] * K + tap, d_taps, mask=tap < K)


@triton.jit(do_not_specialize=["T"])
def prep_backward_kernel(
    x,
    a,
    b,
    weight,
    a_log,
    dt_bias,
    tail,
    dq,
    dk,
    dv,
    dg,
    dbeta,
    d_new_tail,
    dx,
    da,
    db,
    d_weight,
    d_a_log,
    d_dt_bias,
    d_tail,
    T,
    H: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    BT: tl.constexpr,
    STEPS: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    HAS_GRAD_TAIL: tl.constexpr,
):
    """One program per BT * STEPS positions of cat(tail, x) and key head; TAPS is K rounded up to a power of two.

    d_weight [batch * blocks, channels, K], d_a_log and d_dt_bias [batch * blocks, H * R] are the programs' parts.
    """
    channels: tl.constexpr = H * (2 + R) * D
    blocks = tl.cdiv(T + K - 1, BT * STEPS)
    block = tl.program_id(0) % blocks
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = lane // H, lane % H
    x += row * T * channels
    dx += row * T * channels
    tail += row * (K - 1) * channels
    d_tail += row * (K - 1) * channels
    d_new_tail += row * (K - 1) * channels
    d_weight += (row * blocks + block) * channels * K
    first = block * (BT * STEPS)
    wide = tl.arange(0, D)
    at = head * ((2 + R) * D) + wide
    key = (row * T * H + head) * D
    _part_backward(x, tail, weight, dq + key, H * D, d_new_tail, dx, d_tail, d_weight, first, T, channels, K,
                   TAPS, BT, STEPS, HAS_TAIL, HAS_GRAD_TAIL, at, wide, True)  # fmt: skip
    _part_backward(x, tail, weight, dk + key, H * D, d_new_tail, dx, d_tail, d_weight, first, T, channels, K,
                   TAPS, BT, STEPS, HAS_TAIL, HAS_GRAD_TAIL, at + D, wide, True)  # fmt: skip
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        _part_backward(x, tail, weight, dv + value, H * R * D, d_new_tail, dx, d_tail, d_weight, first, T, channels, K,
                       TAPS, BT, STEPS, HAS_TAIL, HAS_GRAD_TAIL, at + (2 + r) * D, wide, False)  # fmt: skip
        rate = -tl.exp(tl.load(a_log + value_head).to(tl.float32))
        bias = tl.load(dt_bias + value_head).to(tl.float32)
        d_rate, d_bias = 0.0, 0.0
        for step in range(STEPS):
            t = first + step * BT + tl.arange(0, BT)
            gates = row * T * H * R + t * (H * R) + value_head
            speed = tl.load(a + gates, mask=t < T, other=0.0).to(tl.float32) + bias
            d_decay = tl.load(dg + gates, mask=t < T, other=0.0).to(tl.float32)
            d_speed = d_decay * rate * tl.sigmoid(speed)
            strength = tl.sigmoid(tl.load(b + gates, mask=t < T, other=0.0).to(tl.float32))
            d_strength = tl.load(dbeta + gates, mask=t < T, other=0.0).to(tl.float32)
            tl.store(da + gates, narrow(d_speed, da.dtype.element_ty), mask=t < T)
            tl.store(db + gates, narrow(d_strength * strength * (1 - strength), db.dtype.element_ty), mask=t < T)
            d_rate += tl.sum(d_decay * rate * _softplus(speed))
            d_bias += tl.sum(d_speed)
        part = (row * blocks + block) * (H * R) + value_head
        tl.store(d_a_log + part, d_rate)
        tl.store(d_dt_bias + part, d_bias)


def forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None,
    key_heads: int,
    launch: Launch,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, g, beta and the new tail, as in `sleep_kernels.delta_inputs`; tensors contiguous."""
    batch, time, channels = x.shape
    group, kernel = a.shape[2] // key_heads, weight.shape[1]
    width = channels // (key_heads * (2 + group))
    q, k = (x.new_empty((batch, time, key_heads, width)) for _ in range(2))
    v = x.new_empty((batch, time, key_heads * group, width))
    g, beta = (x.new_empty(a.shape, dtype=torch.float32) for _ in range(2))
    new_tail = x.new_empty((batch, kernel - 1, channels))
    prep_kernel[(batch * key_heads * triton.cdiv(time, launch.block),)](
        x,
        a,
        b,
        weight,
        a_log,
        dt_bias,
        x if tail is None else tail,
        q,
        k,
        v,
        g,
        beta,
        new_tail,
        time,
        H=key_heads,
        R=group,
        D=width,
        K=kernel,
        BT=launch.block,
        HAS_TAIL=tail is not None,
        num_warps=launch.warps,
    )
    return q, k, v, g, beta, new_tail


def backward(
    grads: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad_tail: Tensor | None,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None,
    key_heads: int,
    launch: Launch,
) -> tuple[Tensor, ...]:
    """Gradients of x, a, b, weight, a_log, dt_bias and tail, from those of q, k, v, g, beta and the new tail."""
    batch, time, channels = x.shape
    group, kernel = a.shape[2] // key_heads, weight.shape[1]
    width = channels // (key_heads * (2 + group))
    steps = triton.cdiv(_TOKENS, launch.block)
    blocks = triton.cdiv(time + kernel - 1, launch.block * steps)
    dx, da, db = (torch.empty_like(t) for t in (x, a, b))
    d_weight = x.new_empty((batch * blocks, channels, kernel), dtype=torch.float32)
    d_a_log, d_dt_bias = (x.new_empty((batch * blocks, a.shape[2]), dtype=torch.float32) for _ in range(2))
    d_tail = x.new_empty((batch, kernel - 1, channels))
    prep_backward_kernel[(batch * key_heads * blocks,)](
        x,
        a,
        b,
        weight,
        a_log,
        dt_bias,
        x if tail is None else tail,
        *grads,
        x if grad_tail is None else grad_tail,
        dx,
        da,
        db,
        d_weight,
        d_a_log,
        d_dt_bias,
        d_tail,
        time,
        H=key_heads,
        R=group,
        D=width,
        K=kernel,
        TAPS=triton.next_power_of_2(kernel),
        BT=launch.block,
        STEPS=steps,
        HAS_TAIL=tail is not None,
        HAS_GRAD_TAIL=grad_tail is not None,
        num_warps=launch.warps,
    )
    sums = (part.sum(0).to(t.dtype) for part, t in ((d_weight, weight), (d_a_log, a_log), (d_dt_bias, dt_bias)))
    return dx, da, db, *sums, d_tail
