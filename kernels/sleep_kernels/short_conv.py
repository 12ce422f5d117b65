"""Short causal depthwise convolution with a tail, the state that carries it across windows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import compute_dtype, even_slices
from sleep_kernels.register import forbid_double_backward, register_backward, register_operator


def short_conv(
    x: Tensor, weight: Tensor, tail: Tensor | None = None, *, activation: str = "silu"
) -> tuple[Tensor, Tensor]:
    """Causal convolution of each channel with its own kernel: with p = cat(tail, x),

        y[t] = activation(sum_j weight[:, j] * p[t + j])

    x: [batch, time, channels], bf16, fp16, fp32 or fp64.
    weight: [channels, kernel], in the dtype of x or float32.
    tail: [batch, kernel - 1, channels], in the dtype of x: the kernel - 1 inputs before x; None means zeros.
    activation: "silu" or "none".

    Returns y, in the shape and dtype of x, and the new tail, the last kernel - 1 tokens of p. Computed in float32
    (float64 for float64). Backward saves only the inputs; there is no second derivative. Implemented as shifted
    multiply-adds, several times faster on CPU than torch's depthwise conv1d.
    Raises ValueError, naming the tensor, for a wrong shape, dtype or activation.
    """
    _check(x, weight, tail, activation)
    return _CONV(x, weight, tail, activation == "silu")


def _check(x: Tensor, weight: Tensor, tail: Tensor | None, activation: str) -> None:
    if activation not in ("silu", "none"):
        raise ValueError(f"activation {activation!r} is not offered; choose silu or none")
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [batch, time, channels], none of them empty")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; it must be a floating-point tensor")
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [channels, kernel], channels = {channels}")
    if weight.dtype not in (x.dtype, compute_dtype(x)):
        raise ValueError(f"weight has dtype {weight.dtype}; with x in {x.dtype} it must be {compute_dtype(x)}")
    if tail is None:
        return
    if tail.shape != (batch, weight.shape[1] - 1, channels):
        expected = [batch, weight.shape[1] - 1, channels]
        raise ValueError(f"tail has shape {list(tail.shape)}; it must be [batch, kernel - 1, channels] = {expected}")
    if tail.dtype != x.dtype:
        raise ValueError(f"tail has dtype {tail.dtype}; it must be that of x, {x.dtype}")


def _padded(x: Tensor, tail: Tensor | None, history: int) -> Tensor:
    """cat(tail, x) in the compute dtype."""
    batch, time, channels = x.shape
    padded = x.new_empty((batch, history + time, channels), dtype=compute_dtype(x))
    padded[:, history:].copy_(x)
    padded[:, :history].zero_() if tail is None else padded[:, :history].copy_(tail)
    return padded


def convolve(padded: Tensor, taps: Tensor, reach: Tensor | None = None) -> Tensor:
    """Convolution of padded [batch, kernel - 1 + time, channels] with taps [kernel, channels]: [batch, time, channels].

    reach: [batch, time], how many positions before its own an output reads at most; None means kernel - 1.
    """
    time = padded.shape[1] - taps.shape[0] + 1
    z = _within(padded.narrow(1, 0, time), reach, taps.shape[0] - 1) * taps[0]
    for j in range(1, taps.shape[0]):
        z.addcmul_(_within(padded.narrow(1, j, time), reach, taps.shape[0] - 1 - j), taps[j])
    return z


def convolve_backward(
    dz: Tensor, padded: Tensor, taps: Tensor, d_padded: Tensor, d_taps: Tensor, reach: Tensor | None = None
) -> None:
    """Accumulate the gradients of `convolve(padded, taps, reach)`, given dz of its result, into d_padded and d_taps."""
    time, product = dz.shape[1], torch.empty_like(dz)
    for j in range(taps.shape[0]):
        reading = _within(dz, reach, taps.shape[0] - 1 - j)
        d_padded[:, j : j + time].addcmul_(reading, taps[j])
        d_taps[j] += torch.mul(reading, padded[:, j : j + time], out=product).sum((0, 1))


def _within(x: Tensor, reach: Tensor | None, distance: int) -> Tensor:
    """x [batch, time, channels] with zeros where an output does not read the position `distance` before it."""
    return x if reach is None or distance == 0 else x.masked_fill((reach < distance)[..., None], 0)


def _forward(x: Tensor, weight: Tensor, tail: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:
    batch, time, channels = x.shape
    history = weight.shape[1] - 1
    taps = weight.t().to(compute_dtype(x)).contiguous()
    y = x.new_empty(x.shape)
    new_tail = x.new_empty((batch, history, channels))
    kept = min(time, history)  # tokens of x; a window shorter than the tail keeps the end of the old tail too
    new_tail[:, history - kept :].copy_(x[:, time - kept :])
    if kept < history:
        old = new_tail[:, : history - kept]
        old.zero_() if tail is None else old.copy_(tail[:, kept:])
    for part in even_slices(batch, (history + time) * channels * taps.itemsize, x):
        z = convolve(_padded(x[part], None if tail is None else tail[part], history), taps)
        y[part].copy_(F.silu(z, inplace=True) if silu else z)
    return y, new_tail


def _backward(
    grad_y: Tensor | None, grad_tail: Tensor | None, x: Tensor, weight: Tensor, tail: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, channels = x.shape
    history = weight.shape[1] - 1
    taps = weight.t().to(compute_dtype(x)).contiguous()
    dx, d_tail = x.new_empty(x.shape), x.new_empty((batch, history, channels))
    d_taps = torch.zeros_like(taps)
    for part in even_slices(batch, (history + time) * channels * taps.itemsize, x):
        padded = _padded(x[part], None if tail is None else tail[part], history)
        d_padded = torch.zeros_like(padded)
        if grad_tail is not None:
            d_padded[:, time:].copy_(grad_tail[part])
        if grad_y is not None:
            dz = grad_y[part].to(taps.dtype)
            if silu:
                dz = torch.ops.aten.silu_backward(dz, convolve(padded, taps))
            convolve_backward(dz, padded, taps, d_padded, d_taps)
        dx[part].copy_(d_padded[:, history:])
        d_tail[part].copy_(d_padded[:, :history])
    return dx, d_taps.t().to(weight.dtype).contiguous(), d_tail


def _forward_fake(x: Tensor, weight: Tensor, tail: Any, silu: bool) -> Any:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[2]))


def _backward_fake(grad_y: Any, grad_tail: Any, x: Tensor, weight: Tensor, tail: Any, silu: bool) -> Any:
    d_tail = x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[2]))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_tail


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_y: Tensor | None, grad_tail: Tensor | None) -> tuple[Tensor | None, ...]:
    dx, d_weight, d_tail = _CONV_BACKWARD(grad_y, grad_tail, *ctx.saved_tensors, ctx.silu)
    return dx, d_weight, d_tail if ctx.needs_input_grad[2] else None, None


_INPUTS = "Tensor x, Tensor weight, Tensor? tail, bool silu"
_CONV = register_operator("short_conv", f"({_INPUTS}) -> (Tensor y, Tensor new_tail)", _forward, _forward_fake)
_CONV_BACKWARD = register_operator(
    "short_conv_backward",
    f"(Tensor? grad_y, Tensor? grad_tail, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_backward("short_conv", _setup, _autograd)
forbid_double_backward("short_conv_backward")
