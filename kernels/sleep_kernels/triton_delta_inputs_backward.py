"""delta_inputs backward in one Triton kernel, and the sum of its programs' gradients of weights.

Positions as in triton_delta_inputs.py. The convolution is recomputed once per tap: its inputs are cached, and no intermediate
result is written to memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.common import DeltaInputTensors
from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import round_to
from sleep_kernels.triton_delta_inputs import (
    EPS,
    convolve,
    is_document_start,
    is_real_token,
    kernel_constants,
    load_tokens,
    pointers,
    softplus,
    source_position,
    token_index,
    within_document,
)
from sleep_kernels.triton_partial_sums import partial_sums
from sleep_kernels.verified import KernelLaunch

# Tokens per program. More tokens mean fewer partial sums of the convolution weights' gradients.
_TOKENS = 64


@triton.jit
def _conv_output_gradient(x, x_row, tail, tail_row, order, reach, weight, dy, dy_row, p, T, K: tl.constexpr,
                          HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr, at,
                          NORM: tl.constexpr):  # fmt: skip
    """Gradient of the convolution's result at positions p; 0 where p is not a real token of x."""
    z = convolve(x, x_row, tail, tail_row, order, reach, weight, p, T, K, HAS_TAIL, PACKED, DOCUMENTS, at)
    s = source_position(order, p, T, K, PACKED)
    real = is_real_token(s, T, K)[:, None]
    grad = tl.load(dy + (s - (K - 1))[:, None] * dy_row + at[None, :], mask=real, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(z)
    if NORM:
        value = z * sigmoid
        inverse = tl.rsqrt(tl.sum(value * value, 1) + EPS)[:, None]
        normal = value * inverse
        grad = (grad - normal * tl.sum(grad * normal, 1)[:, None]) * inverse
    return tl.where(real, grad * sigmoid * (1 + z * (1 - sigmoid)), 0.0)


@triton.jit
def _store_head_gradients(x, x_row, tail, tail_row, order, reach, weight, dy, dy_row, d_new_tail, dx, d_tail, d_weight,
                          first, T, D: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr,
                          HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr,
                          NORM: tl.constexpr):  # fmt: skip
    """Store one head's gradients of BT * STEPS positions from `first`, and their partial sum of d_weight."""
    at = tl.arange(0, D)
    tap = tl.arange(0, TAPS)[:, None]
    d_taps = tl.zeros((TAPS, D), tl.float32)
    for step in range(STEPS):
        p = first + step * BT + tl.arange(0, BT)
        carried = ((p >= T) & (p < T + K - 1))[:, None]
        if DOCUMENTS:
            carried = carried & (T + K - 2 - p <= tl.load(reach + T + K - 2))[:, None]
        total = tl.load(d_new_tail + (p - T)[:, None] * tail_row + at[None, :], mask=carried, other=0.0).to(tl.float32)
        here = load_tokens(x, x_row, tail, tail_row, order, p, T, K, HAS_TAIL, PACKED, at)
        for j in range(K):  # not unrolled, which would take three times the time to compile, and more registers
            # The output at p + (K - 1) - j reads position p with tap j.
            dz = _conv_output_gradient(x, x_row, tail, tail_row, order, reach, weight, dy, dy_row, p + (K - 1) - j, T, K,
                                       HAS_TAIL, PACKED, DOCUMENTS, at, NORM)  # fmt: skip
            dz = within_document(dz, reach, p + (K - 1) - j, K - 1 - j, T, K, DOCUMENTS)
            total += dz * tl.load(weight + at * K + j).to(tl.float32)[None, :]
            d_taps += tl.where(tap == j, tl.sum(dz * here, 0)[None, :], 0.0)
        s = source_position(order, p, T, K, PACKED)
        row = token_index(s, K, PACKED)
        inside = ((row >= 0) & (row < T))[:, None]
        # Padding is packed in front of all real tokens, so no output reads it, and its `total` is 0.
        tl.store(dx + row[:, None] * x_row + at[None, :], round_to(total, dx.dtype.element_ty), mask=inside)
        head = ((s >= 0) & (s < K - 1))[:, None]
        tl.store(d_tail + s[:, None] * tail_row + at[None, :], round_to(total, d_tail.dtype.element_ty), mask=head)
    tl.store(d_weight + at[None, :] * K + tap, d_taps, mask=tap < K)


@kernel(do_not_specialize=["T"])
def delta_inputs_backward_kernel(
    qkv, ba, conv_q, conv_k, conv_v, a_log, dt_bias, tail, order, reach, dq_out, dk_out, dv_out, dg, dbeta,
    d_new_tail, d_qkv, d_ba, d_weights, d_tail, T, strength, H: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, K: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, STEPS: tl.constexpr,
    HAS_TAIL: tl.constexpr, PACKED: tl.constexpr, DOCUMENTS: tl.constexpr
):  # fmt: skip
    """One program per BT * STEPS positions of cat(tail, x) and key head; TAPS is K rounded up to a power of two.

    d_weights [batch * blocks, channels of q | k | v times K, a_log H * R, dt_bias H * R] are partial sums: a row for the
    programs of one block, each of which writes the columns of its heads.
    """
    blocks = tl.cdiv(T + K - 1, BT * STEPS)
    block = tl.program_id(0) % blocks
    key_bh = (tl.program_id(0) // blocks).to(tl.int64)
    row, head = key_bh // H, key_bh % H
    first = block * (BT * STEPS)
    order += row * (T + K - 1)
    reach += row * (T + K - 1)
    width: tl.constexpr = H * (2 + R) * D
    tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_new_tail += row * (K - 1) * width + head * ((2 + R) * D)
    d_conv = d_weights + (row * blocks + block) * (width * K + 2 * H * R)
    d_gates = d_conv + width * K
    key = (row * T * H + head) * D
    weight = head * D * K
    qkv += row * T * width
    d_qkv += row * T * width
    b, db = ba + row * T * (2 * H * R), d_ba + row * T * (2 * H * R)
    at = head * D
    _store_head_gradients(qkv + at, width, tail, width, order, reach, conv_q + weight, dq_out + key, H * D, d_new_tail,
                          d_qkv + at, d_tail, d_conv + weight, first, T, D, K, TAPS, BT, STEPS, HAS_TAIL, PACKED,
                          DOCUMENTS, True)  # fmt: skip
    d_conv += H * D * K
    at = (H + head) * D
    _store_head_gradients(qkv + at, width, tail + D, width, order, reach, conv_k + weight, dk_out + key, H * D,
                          d_new_tail + D, d_qkv + at, d_tail + D, d_conv + weight, first, T, D, K, TAPS, BT, STEPS,
                          HAS_TAIL, PACKED, DOCUMENTS, True)  # fmt: skip
    d_conv += H * D * K
    for r in range(R):
        value_head = head * R + r
        value = (row * T * H * R + value_head) * D
        part = (2 + r) * D
        weight = value_head * D * K
        at = (2 * H + value_head) * D
        _store_head_gradients(qkv + at, width, tail + part, width, order, reach, conv_v + weight, dv_out + value, H * R * D,
                              d_new_tail + part, d_qkv + at, d_tail + part, d_conv + weight, first, T,
                              D, K, TAPS, BT, STEPS, HAS_TAIL, PACKED, DOCUMENTS, False)  # fmt: skip
        neg_a = -tl.exp(tl.load(a_log + value_head).to(tl.float32))
        bias = tl.load(dt_bias + value_head).to(tl.float32)
        d_neg_a, d_bias = 0.0, 0.0
        for step in range(STEPS):
            p = first + step * BT + tl.arange(0, BT)
            s = source_position(order, p, T, K, PACKED)
            t = token_index(s, K, PACKED)
            inside = (t >= 0) & (t < T)
            real = is_real_token(s, T, K)
            gates = row * T * H * R + t * (H * R) + value_head
            read = t * (2 * H * R) + value_head
            dt = tl.load(b + H * R + read, mask=real, other=0.0).to(tl.float32) + bias
            d_decay = tl.load(dg + gates, mask=real, other=0.0).to(tl.float32)
            if DOCUMENTS:
                d_decay = tl.where(is_document_start(reach, p, T, K), 0.0, d_decay)
            d_dt = d_decay * neg_a * tl.sigmoid(dt)
            sigmoid = tl.sigmoid(tl.load(b + read, mask=real, other=0.0).to(tl.float32))
            d_sigmoid = strength * tl.load(dbeta + gates, mask=real, other=0.0).to(tl.float32)
            tl.store(db + H * R + read, round_to(d_dt, db.dtype.element_ty), mask=inside)
            tl.store(db + read, round_to(d_sigmoid * sigmoid * (1 - sigmoid), db.dtype.element_ty), mask=inside)
            d_neg_a += tl.sum(d_decay * neg_a * softplus(dt))
            d_bias += tl.sum(d_dt)
        tl.store(d_gates + value_head, d_neg_a)
        tl.store(d_gates + H * R + value_head, d_bias)


def backward(
    grads: list[Tensor], t: DeltaInputTensors, key_heads: int, strength: float, launch: KernelLaunch
) -> tuple[Tensor, ...]:
    """Gradients of the tensors qkv ... dt_bias and of the tail, as `torch_delta_inputs.backward`; tensors contiguous."""
    constants = kernel_constants(t, key_heads, launch)
    (batch, time, _), kernel, weights = t.qkv.shape, constants["K"], t[2:7]
    steps = triton.cdiv(_TOKENS, launch.block)
    blocks = triton.cdiv(time + kernel - 1, launch.block * steps)
    d_tokens = [torch.empty_like(x) for x in t[:2]]
    width = sum(weight.numel() for weight in weights)
    d_weights = t.qkv.new_empty((batch * blocks, width), dtype=torch.float32)
    d_tail = torch.empty_like(grads[5])
    delta_inputs_backward_kernel[(batch * key_heads * blocks,)](
        *pointers(t),
        *grads,
        *d_tokens,
        d_weights,
        d_tail,
        time,
        strength,
        TAPS=triton.next_power_of_2(kernel),
        STEPS=steps,
        **constants,
    )
    return *d_tokens, *partial_sums(d_weights, weights), d_tail
