"""delta_inputs forward in one Triton kernel: short convolution, SiLU, L2 norm and gates.

Positions p index cat(tail, x) in packed order, with padding moved to the front (see `packing` in delta_inputs.py). The
output at p reads positions p - (K - 1) ... p, with DOCUMENTS those of its document only (see `convolution_reach` there).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import DeltaInputTensors
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import round_to
from sleep_kernels.verified import KernelLaunch

EPS = tl.constexpr(1e-6)


@triton.jit
def source_position(order, p, T, K: tl.constexpr, PACKED: tl.constexpr):
    """The position in cat(tail, x) of packed position p, or -1 - position for padding; out of range where p is."""
    if PACKED:
        return tl.load(order + p, mask=(p >= 0) & (p < T + K - 1), other=-(1 << 30))
    return p


@triton.jit
def is_real_token(source, T, K: tl.constexpr):
    """Whether a source position is a real token of x, and not of the tail or padding."""
    return (source >= K - 1) & (source < T + K - 1)


@triton.jit
def token_index(source, K: tl.constexpr, PACKED: tl.constexpr):
    """The token of x at a source position, padded tokens included; outside 0 ... T - 1 if there is none."""
    if PACKED:
        source = tl.where(source < 0, -1 - source, source)
    return source - (K - 1)


@triton.jit
def load_tokens(
    x, x_row, tail, tail_row, order, p, T, K: tl.constexpr, HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, at
):
    """Channels `at` of tokens p of the packed cat(tail, x) in float32; 0 for padding and out of range."""
    s = source_position(order, p, T, K, PACKED)
    real = is_real_token(s, T, K)[:, None]
    value = tl.load(x + (s - (K - 1))[:, None] * x_row + at[None, :], mask=real, other=0.0).to(tl.float32)
    if HAS_TAIL:
        head = ((s >= 0) & (s < K - 1))[:, None]
        value += tl.load(tail + s[:, None] * tail_row + at[None, :], mask=head, other=0.0).to(tl.float32)
    return value


@triton.jit
def within_document(x, reach, p, distance, T, K: tl.constexpr, DOCUMENTS: tl.constexpr):
    """x [positions, channels] with zeros where the position `distance` before p belongs to another document than p."""
    if DOCUMENTS:
        inside = tl.load(reach + p, mask=(p >= 0) & (p < T + K - 1), other=K) >= distance
        return tl.where(inside[:, None], x, 0.0)
    return x


@triton.jit
def is_document_start(reach, p, T, K: tl.constexpr):
    """Whether packed position p is the first token of a document."""
    return tl.load(reach + p, mask=(p >= 0) & (p < T + K - 1), other=K) == 0


@triton.jit
def convolve(x, x_row, tail, tail_row, order, reach, weight, p, T, K: tl.constexpr, HAS_TAIL: tl.constexpr,
             PACKED: tl.constexpr, DOCUMENTS: tl.constexpr, at):  # fmt: skip
    """Convolution at positions p: sum over j of weight[at, j] * token[p - (K - 1) + j]."""
    z = load_tokens(x, x_row, tail, tail_row, order, p - (K - 1), T, K, HAS_TAIL, PACKED, at)
    z = within_document(z, reach, p, K - 1, T, K, DOCUMENTS) * tl.load(weight + at * K).to(tl.float32)[None, :]
    for j in tl.static_range(1, K):
        tap = tl.load(weight + at * K + j).to(tl.float32)[None, :]
        token = load_tokens(x, x_row, tail, tail_row, order, p - (K - 1) + j, T, K, HAS_TAIL, PACKED, at)
        z += within_document(token, reach, p, K - 1 - j, T, K, DOCUMENTS) * tap
    return z


@triton.jit
def _store_head(x, x_row, tail, tail_row, order, reach, weight, y, y_row, p, T, D: tl.constexpr, K: tl.constexpr,
                HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr,
                NORM: tl.constexpr):  # fmt: skip
    """Store one head's outputs at p. Pointers are to the first element of the sequence and head."""
    at = tl.arange(0, D)
    z = convolve(x, x_row, tail, tail_row, order, reach, weight, p, T, K, HAS_TAIL, PACKED, DOCUMENTS, at)
    value = z * tl.sigmoid(z)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
    s = source_position(order, p, T, K, PACKED)
    row = token_index(s, K, PACKED)
    if PACKED:
        value = tl.where((s >= 0)[:, None], value, 0.0)
    inside = ((row >= 0) & (row < T))[:, None]
    tl.store(y + row[:, None] * y_row + at[None, :], round_to(value, y.dtype.element_ty), mask=inside)


@triton.jit
def _store_tail(x, x_row, tail, tail_row, order, reach, new_tail, T, D: tl.constexpr, K: tl.constexpr,
                HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr):  # fmt: skip
    """Store one head's part of the new tail."""
    at = tl.arange(0, D)
    for j in tl.static_range(K - 1):
        p = T + j + tl.zeros((1,), tl.int32)
        last = load_tokens(x, x_row, tail, tail_row, order, p, T, K, HAS_TAIL, PACKED, at)
        last = within_document(last, reach, T + K - 2 + tl.zeros((1,), tl.int32), K - 2 - j, T, K, DOCUMENTS)
        tl.store(new_tail + j * tail_row + at[None, :], round_to(last, new_tail.dtype.element_ty))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), or x above 20 as in torch."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@kernel(do_not_specialize=["T"])
def delta_inputs_kernel(
    qkv, ba, conv_q, conv_k, conv_v, a_log, dt_bias, tail, order, reach, q_out, k_out, v_out, g, beta, new_tail, T,
    strength, H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BT: tl.constexpr,
    HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr
):  # fmt: skip
    """One program per BT positions and key head with its R value heads.

    Positions are the tokens of x, or with PACKED all of cat(tail, x).
    """
    first: tl.constexpr = 0 if PACKED else K - 1
    blocks = tl.cdiv(T + K - 1 - first, BT)
    block = tl.program_id(0) % blocks
    key_bh = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = key_bh // H, key_bh % H
    p = first + block * BT + tl.arange(0, BT)
    order += row * (T + K - 1)
    reach += row * (T + K - 1)
    width: tl.constexpr = H * (2 + R) * D
    tail += row * (K - 1) * width + head * ((2 + R) * D)
    new_tail += row * (K - 1) * width + head * ((2 + R) * D)
    qkv += row * T * width
    b = ba + row * T * (2 * H * R)
    a = b + H * R
    key = (row * T * H + head) * D
    weight = head * D * K
    _store_head(qkv + head * D, width, tail, width, order, reach, conv_q + weight, q_out + key, H * D, p, T, D, K, HAS_TAIL,
                PACKED, DOCUMENTS, True)  # fmt: skip
    _store_head(qkv + (H + head) * D, width, tail + D, width, order, reach, conv_k + weight, k_out + key, H * D, p, T, D, K,
                HAS_TAIL, PACKED, DOCUMENTS, True)  # fmt: skip
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        _store_head(qkv + (2 * H + value_head) * D, width, tail + (2 + r) * D, width, order, reach,
                    conv_v + value_head * D * K, v_out + value, H * R * D, p, T, D, K, HAS_TAIL, PACKED, DOCUMENTS,
                    False)  # fmt: skip
        s = source_position(order, p, T, K, PACKED)
        t = token_index(s, K, PACKED)
        inside = (t >= 0) & (t < T)
        real = is_real_token(s, T, K)
        read = t * (2 * H * R) + value_head
        gates = row * T * H * R + t * (H * R) + value_head
        dt = tl.load(a + read, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias + value_head).to(tl.float32)
        decay = -tl.exp(tl.load(a_log + value_head).to(tl.float32)) * softplus(dt)
        if DOCUMENTS:
            decay = tl.where(is_document_start(reach, p, T, K), -float("inf"), decay)
        value_beta = strength * tl.sigmoid(tl.load(b + read, mask=real, other=0.0).to(tl.float32))
        tl.store(g + gates, tl.where(real, decay, 0.0), mask=inside)
        tl.store(beta + gates, tl.where(real, value_beta, 0.0), mask=inside)
    if block == blocks - 1:
        _store_tail(qkv + head * D, width, tail, width, order, reach, new_tail, T, D, K, HAS_TAIL, PACKED, DOCUMENTS)
        _store_tail(qkv + (H + head) * D, width, tail + D, width, order, reach, new_tail + D, T, D, K, HAS_TAIL, PACKED,
                    DOCUMENTS)  # fmt: skip
        for r in range(R):
            part = (2 + r) * D
            _store_tail(qkv + (2 * H + head * R + r) * D, width, tail + part, width, order, reach, new_tail + part, T, D, K,
                        HAS_TAIL, PACKED, DOCUMENTS)  # fmt: skip


def kernel_constants(t: DeltaInputTensors, key_heads: int, launch: KernelLaunch) -> dict[str, Any]:
    """Compile-time constants of both kernels."""
    kernel = t.conv_q.shape[1]
    return {
        "H": key_heads,
        "R": t.a_log.shape[0] // key_heads,
        "D": t.conv_q.shape[0] // key_heads,
        "K": kernel,
        "BT": launch.block,
        "HAS_TAIL": t.tail is not None and kernel > 1,
        "PACKED": t.order is not None,
        "DOCUMENTS": t.reach is not None,
        "num_warps": launch.warps,
    }


def pointers(t: DeltaInputTensors) -> list[Tensor]:
    """The kernels' tensor arguments. A missing one is not accessed but still needs a valid pointer, which is qkv."""
    return [t.qkv if x is None else x for x in t]


def forward(t: DeltaInputTensors, key_heads: int, strength: float, launch: KernelLaunch) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and the new tail, as `torch_delta_inputs.forward`; tensors contiguous."""
    x, constants = t.qkv, kernel_constants(t, key_heads, launch)
    (batch, time, width), d, kernel, heads = x.shape, constants["D"], constants["K"], t.a_log.shape[0]
    q_out, k_out = (x.new_empty((batch, time, key_heads, d)) for _ in range(2))
    v_out = x.new_empty((batch, time, heads, d))
    g, beta = (x.new_empty((batch, time, heads), dtype=torch.float32) for _ in range(2))
    new_tail = x.new_empty((batch, kernel - 1, key_heads, width // key_heads))
    positions = time + kernel - 1 if constants["PACKED"] else time
    outputs = (q_out, k_out, v_out, g, beta, new_tail)
    grid = (batch * key_heads * triton.cdiv(positions, launch.block),)
    delta_inputs_kernel[grid](*pointers(t), *outputs, time, strength, **constants)
    return outputs
