"""Inputs of the gated delta rule from a layer's projections: short convolution, SiLU, L2 norm and gates, fused."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sleep_kernels import dispatch, torch_delta_inputs
from sleep_kernels.common import DeltaInputTensors, compute_dtype
from sleep_kernels.register import forbid_double_backward, register_backward, register_operator
from sleep_kernels.verified import KernelLaunch


def delta_inputs(
    qkv: Tensor,
    ba: Tensor,
    conv_q: Tensor,
    conv_k: Tensor,
    conv_v: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None = None,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    key_heads: int,
    strength: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply a short causal convolution (see `short_conv`) and SiLU to q, k and v, and L2-normalise q and k by head;
    g = -exp(a_log) softplus(a + dt_bias);  beta = strength * sigmoid(b).

    qkv: [batch, time, channels], those of q, k [key_heads * d] and v [value_heads * d] side by side, as one product of a layer writes
        them; value_heads = r * key_heads.
    ba: [batch, time, 2 * value_heads], b | a, in the dtype of qkv or float32. a_log, dt_bias: [value_heads].
    conv_q, conv_k, conv_v: [channels, kernel], in the dtype of qkv or float32.
    tail: [batch, kernel - 1, key_heads, (2 + r) * d], the last kernel - 1 inputs of the convolution before these, for each key
        head its q, its k and its value heads; None means zeros.
    valid: [batch, time], bool, false for padding at any position; None means that all tokens are real. A padded token is
        skipped: the convolution reads consecutive real tokens only, and its q, k, v, g and beta are 0. Padded rows and their
        gradients are never read.
    starts: [batch, time], bool, true for the first token of every document that begins here; None means that none does. The
        convolution reads tokens of one document only, with zeros before its first token, and there g is -inf, which resets the
        state. Tokens before the first start belong to the document of `tail`. A padded token cannot be a start.
    strength: 2 allows negative eigenvalues of the rule's transition matrices (arXiv 2411.12537).
    backend: "chunked" (plain torch), "triton" (one kernel each for forward and backward; d a power of two) or "auto": "triton"
        on a GPU for which it has been verified (see verified.py), else "chunked".

    Returns q, k [batch, time, key_heads, d] and v [batch, time, value_heads, d] in the dtype of qkv, g and beta in float32
    (float64 for float64), and the new tail. Computes in the latter dtype and rounds results once. Backward saves only the
    inputs; there is no second derivative.
    Raises ValueError, naming the tensor, for a wrong shape, dtype or backend.
    Source: the layer of arXiv 2412.06464, with the channel layout of Qwen3.5.
    """
    dispatch.check_backend(backend)
    tensors = DeltaInputTensors(qkv, ba, conv_q, conv_k, conv_v, a_log, dt_bias, tail, None, None)
    _check(tensors, valid, starts, key_heads)
    history = conv_q.shape[1] - 1
    order = None if valid is None else packing(valid, history)
    reach = None if starts is None else convolution_reach(starts, valid, order, history)
    tensors = tensors._replace(order=order, reach=reach)
    return _INPUTS(*tensors, key_heads, float(strength), backend)


def _check(t: DeltaInputTensors, valid: Tensor | None, starts: Tensor | None, key_heads: int) -> None:
    """Raise ValueError for the first tensor of a wrong shape or dtype."""
    x, ba = t.qkv, t.ba
    if ba.dim() != 3 or ba.shape[2] == 0 or ba.shape[2] % (2 * key_heads):
        raise ValueError(
            f"ba has shape {list(ba.shape)}; it must be [batch, time, 2 * a multiple of {key_heads} key heads]"
        )
    heads = ba.shape[2] // 2
    if x.dim() != 3 or 0 in x.shape or x.shape[2] % (2 * key_heads + heads):
        raise ValueError(
            f"qkv has shape {list(x.shape)}; it must be [batch, time, d * (2 * {key_heads} key heads + {heads} value heads)]"
        )
    (batch, time, width), kernel = x.shape, t.conv_q.shape[-1]
    d = width // (2 * key_heads + heads)
    expected = (
        ("ba", ba, (batch, time, 2 * heads)),
        ("conv_q", t.conv_q, (key_heads * d, kernel)),
        ("conv_k", t.conv_k, (key_heads * d, kernel)),
        ("conv_v", t.conv_v, (heads * d, kernel)),
        ("a_log", t.a_log, (heads,)),
        ("dt_bias", t.dt_bias, (heads,)),
        ("tail", t.tail, (batch, kernel - 1, key_heads, width // key_heads)),
        ("valid", valid, (batch, time)),
        ("starts", starts, (batch, time)),
    )
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
    for name, tensor in (("valid", valid), ("starts", starts)):
        if tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be bool")
    if not x.is_floating_point():
        raise ValueError(f"qkv has dtype {x.dtype}; it must be a floating-point tensor")
    if t.tail is not None and t.tail.dtype != x.dtype:
        raise ValueError(f"tail has dtype {t.tail.dtype}; it must be that of qkv, {x.dtype}")
    wide = compute_dtype(x)
    for name, tensor in (("ba", ba), ("conv_q", t.conv_q), ("conv_k", t.conv_k), ("conv_v", t.conv_v)):
        if tensor.dtype not in (x.dtype, wide):
            raise ValueError(f"{name} has dtype {tensor.dtype}; with qkv in {x.dtype} it must be {wide}")


def packing(valid: Tensor, history: int) -> Tensor:
    """Packed order of cat(tail, x): padding first, then the real tokens in order. The tail's `history` tokens are real.

    Returns [batch, history + time] int32: the position s of a real token in cat(tail, x), or -1 - s of a padded one.
    """
    real = torch.cat([valid.new_ones((valid.shape[0], history)), valid], 1)
    order = real.to(torch.uint8).argsort(dim=1, stable=True)
    return torch.where(real.gather(1, order), order, -1 - order).to(torch.int32)


def convolution_reach(starts: Tensor, valid: Tensor | None, order: Tensor | None, history: int) -> Tensor:
    """How many real tokens before each position of the packed cat(tail, x) belong to its document, at most max(`history`, 1).

    Returns [batch, history + time] int32; 0 at the first token of a document, and only there; padding has the most. `order` is that
    of `packing`.
    """
    valid = torch.ones_like(starts) if valid is None else valid
    count = valid.cumsum(1)
    first = (count * starts).cummax(1).values
    most = max(history, 1)
    reach = torch.where((first > 0) & valid, count - first, most).clamp(max=most)
    reach = torch.cat([reach.new_full((reach.shape[0], history), most), reach], 1)
    if order is not None:
        reach = reach.gather(1, torch.where(order < 0, -1 - order, order).to(torch.int64))
    return reach.to(torch.int32)


def _launch(t: DeltaInputTensors, key_heads: int, backend: str) -> KernelLaunch | None:
    """Launch parameters of the Triton kernels; None for plain torch."""
    config = dispatch.select_config("delta_inputs", backend, t.qkv.device, t.qkv.dtype, t.conv_q.shape[0] // key_heads)
    return None if config is None or not dispatch.fits_int32_offsets(t.qkv) else config.delta_inputs


def _contiguous(tensors: Iterable[Tensor | None]) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, (key_heads, strength, backend) = DeltaInputTensors(*arguments[:10]), arguments[10:]
    launch = _launch(tensors, key_heads, backend)
    if launch is None:
        return torch_delta_inputs.forward(tensors, key_heads, strength)
    from sleep_kernels import triton_delta_inputs

    with torch.cuda.device_of(tensors.qkv):
        return triton_delta_inputs.forward(DeltaInputTensors(*_contiguous(tensors)), key_heads, strength, launch)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    grads, tensors, (key_heads, strength, backend) = arguments[:6], DeltaInputTensors(*arguments[6:16]), arguments[16:]
    launch = _launch(tensors, key_heads, backend)
    if launch is None:
        return torch_delta_inputs.backward(grads, tensors, key_heads, strength)
    from sleep_kernels import triton_delta_inputs_backward

    tensors = DeltaInputTensors(*_contiguous(tensors))
    with torch.cuda.device_of(tensors.qkv):
        return triton_delta_inputs_backward.backward(_contiguous(grads), tensors, key_heads, strength, launch)


def _forward_fake(qkv: Tensor, ba: Tensor, conv_q: Tensor, *others: Any) -> Any:
    (batch, time, _), key_heads, heads = qkv.shape, others[-3], ba.shape[2] // 2
    d = conv_q.shape[0] // key_heads
    keys = [qkv.new_empty((batch, time, key_heads, d)) for _ in range(2)]
    gates = [qkv.new_empty((batch, time, heads), dtype=compute_dtype(qkv)) for _ in range(2)]
    return (*keys, qkv.new_empty((batch, time, heads, d)), *gates, _empty_tail(qkv, conv_q, key_heads))


def _empty_tail(qkv: Tensor, conv_q: Tensor, key_heads: int) -> Tensor:
    return qkv.new_empty((qkv.shape[0], conv_q.shape[1] - 1, key_heads, qkv.shape[2] // key_heads))


def _backward_fake(*arguments: Any) -> Any:
    inputs = arguments[6:]
    return (*(t.new_empty(t.shape) for t in inputs[:7]), _empty_tail(inputs[0], inputs[2], inputs[-3]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[10:]
    ctx.save_for_backward(*inputs[:10])


def _autograd(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    *results, d_tail = _INPUTS_BACKWARD(*grads, *ctx.saved_tensors, *ctx.options)
    return *results, d_tail if ctx.needs_input_grad[7] else None, None, None, None, None, None


_ARGUMENTS = ", ".join(f"Tensor {name}" for name in DeltaInputTensors._fields[:7])
_ARGUMENTS += ", Tensor? tail, Tensor? order, Tensor? reach, int key_heads, float strength, str backend"


def _results(count: int) -> str:
    return ", ".join(["Tensor"] * count)


_INPUTS = register_operator("delta_inputs", f"({_ARGUMENTS}) -> ({_results(6)})", _forward, _forward_fake)
_INPUTS_BACKWARD = register_operator(
    "delta_inputs_backward",
    f"(Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor d_tail, {_ARGUMENTS}) -> ({_results(8)})",
    _backward,
    _backward_fake,
)
register_backward("delta_inputs", _setup, _autograd)
forbid_double_backward("delta_inputs_backward")
