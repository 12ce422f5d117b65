"""What stands before the gated delta rule, in one launch each way: convolution, SiLU, L2 norm and gates, in Triton.

Positions p run over cat(tail, x), where padding, if there is any, has been moved to the front (see `packing` in
delta_inputs.py): the output at p reads positions p - (K - 1) ... p.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.triton_common import narrow
from sleep_kernels.verified import Launch

EPS = tl.constexpr(1e-6)


@triton.jit
def source_of(order, p, T, K: tl.constexpr, PACKED: tl.constexpr):
    """Which position of cat(tail, x) stands at p; -1 - position if that is padding. Outside: outside too."""
    if PACKED:
        return tl.load(order + p, mask=(p >= 0) & (p < T + K - 1), other=-(1 << 30))
    return p


@triton.jit
def is_body(source, T, K: tl.constexpr):
    """Whether a source is a real token of x."""
    return (source >= K - 1) & (source < T + K - 1)


@triton.jit
def row_of(source, K: tl.constexpr, PACKED: tl.constexpr):
    """The row of x that belongs to a source, padding or not; outside 0 ... T - 1 if there is none."""
    if PACKED:
        source = tl.where(source < 0, -1 - source, source)
    return source - (K - 1)


@triton.jit
def tokens(x, x_row, tail, tail_row, order, p, T, K: tl.constexpr, HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, at):
    """Tokens p of the packed cat(tail, x), channels `at`, in float32; 0 for padding and outside."""
    s = source_of(order, p, T, K, PACKED)
    body = is_body(s, T, K)[:, None]
    value = tl.load(x + (s - (K - 1))[:, None] * x_row + at[None, :], mask=body, other=0.0).to(tl.float32)
    if HAS_TAIL:
        head = ((s >= 0) & (s < K - 1))[:, None]
        value += tl.load(tail + s[:, None] * tail_row + at[None, :], mask=head, other=0.0).to(tl.float32)
    return value


@triton.jit
def convolve(x, x_row, tail, tail_row, order, weight, p, T, K: tl.constexpr, HAS_TAIL: tl.constexpr,
              PACKED: tl.constexpr, at):  # fmt: skip
    """sum_j weight[at, j] of the token at p - (K - 1) + j."""
    z = tokens(x, x_row, tail, tail_row, order, p - (K - 1), T, K, HAS_TAIL, PACKED, at)
    z *= tl.load(weight + at * K).to(tl.float32)[None, :]
    for j in tl.static_range(1, K):
        tap = tl.load(weight + at * K + j).to(tl.float32)[None, :]
        z += tokens(x, x_row, tail, tail_row, order, p - (K - 1) + j, T, K, HAS_TAIL, PACKED, at) * tap
    return z


@triton.jit
def _part(x, x_row, tail, tail_row, order, weight, y, p, T, D: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr,
          PACKED: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """One head's outputs at p. Pointers at the sequence's and head's first element."""
    at = tl.arange(0, D)
    z = convolve(x, x_row, tail, tail_row, order, weight, p, T, K, HAS_TAIL, PACKED, at)
    value = z * tl.sigmoid(z)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
    s = source_of(order, p, T, K, PACKED)
    row = row_of(s, K, PACKED)
    if PACKED:
        value = tl.where((s >= 0)[:, None], value, 0.0)
    inside = ((row >= 0) & (row < T))[:, None]
    tl.store(y + row[:, None] * x_row + at[None, :], narrow(value, y.dtype.element_ty), mask=inside)


@triton.jit
def _end(x, x_row, tail, tail_row, order, new_tail, T, D: tl.constexpr, K: tl.constexpr, HAS_TAIL: tl.constexpr,
         PACKED: tl.constexpr):  # fmt: skip
    """One head's new tail."""
    at = tl.arange(0, D)
    for j in tl.static_range(K - 1):
        p = T + j + tl.zeros((1,), tl.int32)
        last = tokens(x, x_row, tail, tail_row, order, p, T, K, HAS_TAIL, PACKED, at)
        tl.store(new_tail + j * tail_row + at[None, :], narrow(last, new_tail.dtype.element_ty))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), linear beyond 20 as in torch."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit(do_not_specialize=["T"])
def prep_kernel(
    q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail, order, q_out, k_out, v_out, g, beta, new_tail, T,
    strength, H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BT: tl.constexpr,
    HAS_TAIL: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """One program per BT positions and key head, with its R value heads. Padding packed, all of cat(tail, x) are positions."""
    first: tl.constexpr = 0 if PACKED else K - 1
    blocks = tl.cdiv(T + K - 1 - first, BT)
    block = tl.program_id(0) % blocks
    lane = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = lane // H, lane % H
    p = first + block * BT + tl.arange(0, BT)
    order += row * (T + K - 1)
    width: tl.constexpr = H * (2 + R) * D
    tail += row * (K - 1) * width + head * ((2 + R) * D)
    new_tail += row * (K - 1) * width + head * ((2 + R) * D)
    key = (row * T * H + head) * D
    weight = head * D * K
    _part(q + key, H * D, tail, width, order, conv_q + weight, q_out + key, p, T, D, K, HAS_TAIL, PACKED, True)
    _part(k + key, H * D, tail + D, width, order, conv_k + weight, k_out + key, p, T, D, K, HAS_TAIL, PACKED, True)
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        _part(v + value, H * R * D, tail + (2 + r) * D, width, order, conv_v + value_head * D * K, v_out + value, p, T,
              D, K, HAS_TAIL, PACKED, False)  # fmt: skip
        s = source_of(order, p, T, K, PACKED)
        t = row_of(s, K, PACKED)
        inside = (t >= 0) & (t < T)
        real = is_body(s, T, K)
        gates = row * T * H * R + t * (H * R) + value_head
        speed = tl.load(a + gates, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias + value_head).to(tl.float32)
        decay = -tl.exp(tl.load(a_log + value_head).to(tl.float32)) * softplus(speed)
        share = strength * tl.sigmoid(tl.load(b + gates, mask=real, other=0.0).to(tl.float32))
        tl.store(g + gates, tl.where(real, decay, 0.0), mask=inside)
        tl.store(beta + gates, tl.where(real, share, 0.0), mask=inside)
    if block == blocks - 1:
        _end(q + key, H * D, tail, width, order, new_tail, T, D, K, HAS_TAIL, PACKED)
        _end(k + key, H * D, tail + D, width, order, new_tail + D, T, D, K, HAS_TAIL, PACKED)
        for r in range(R):
            value = (row * T * H * R + head * R + r) * D
            part = (2 + r) * D
            _end(v + value, H * R * D, tail + part, width, order, new_tail + part, T, D, K, HAS_TAIL, PACKED)


def constants_of(inputs: list[Any], key_heads: int, launch: Launch) -> dict[str, Any]:
    q, a, conv_q, tail, order = (inputs[i] for i in (0, 3, 5, 10, 11))
    kernel = conv_q.shape[1]
    return {
        "H": key_heads,
        "R": a.shape[2] // key_heads,
        "D": q.shape[2] // key_heads,
        "K": kernel,
        "BT": launch.block,
        "HAS_TAIL": tail is not None and kernel > 1,
        "PACKED": order is not None,
        "num_warps": launch.warps,
    }


def pointers(inputs: list[Any]) -> list[Tensor]:
    """Pointers that a mode does not touch must still be some tensor's."""
    return [inputs[0] if t is None else t for t in inputs]


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and the new tail; arguments as `chunked_inputs.forward`, tensors contiguous, and the launch."""
    *inputs, key_heads, strength, launch = arguments
    q, a = inputs[0], inputs[3]
    constants = constants_of(inputs, key_heads, launch)
    (batch, time, _), d, kernel = q.shape, constants["D"], constants["K"]
    q_out, k_out = (q.new_empty((batch, time, key_heads, d)) for _ in range(2))
    v_out = q.new_empty((batch, time, a.shape[2], d))
    g, beta = (a.new_empty(a.shape, dtype=torch.float32) for _ in range(2))
    new_tail = q.new_empty((batch, kernel - 1, key_heads, (2 + constants["R"]) * d))
    positions = time + kernel - 1 if constants["PACKED"] else time
    outputs = (q_out, k_out, v_out, g, beta, new_tail)
    grid = (batch * key_heads * triton.cdiv(positions, launch.block),)
    prep_kernel[grid](*pointers(inputs), *outputs, time, strength, **constants)
    return outputs
