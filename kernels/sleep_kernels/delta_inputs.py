"""From a layer's projections to the inputs of the gated delta rule: convolution, SiLU, L2 norm, gates."""

from typing import Any

import torch
from torch import Tensor

from sleep_kernels import choice, chunked_inputs
from sleep_kernels.common import computing_dtype
from sleep_kernels.register import differentiable, once_differentiable, operator


def delta_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    conv_q: Tensor,
    conv_k: Tensor,
    conv_v: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    key_heads: int,
    strength: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Each of q, k, v through a short causal convolution (see `short_conv`) and SiLU, q and k then L2-normed by head;
    g = -exp(a_log) softplus(a + dt_bias);  beta = strength * sigmoid(b).

    q, k: [batch, time, key_heads * d]. v: [batch, time, value_heads * d], value_heads = r * key_heads.
    a, b: [batch, time, value_heads]. a_log, dt_bias: [value_heads].
    conv_q, conv_k, conv_v: [channels, kernel], in the dtype of q or float32.
    tail: [batch, kernel - 1, key_heads, (2 + r) * d], the last kernel - 1 inputs before these, for each key head its q, its
        k and its value heads; None means zeros.
    valid: [batch, time], bool, false for padding, which may be anywhere; None means that all tokens are real. A padded
        token is as if it were not there: the convolution goes from one real token to the next, g and beta are 0, and so
        are q, k, v. What stands in padded rows is never read, nor are their gradients.
    strength: 2 lets the rule's transitions have negative eigenvalues (arXiv 2411.12537).
    backend: "chunked" (plain torch), "triton" (one kernel each way; d a power of two) or "auto": on a GPU "triton" where
        such a GPU has verified it (see verified.py), else "chunked".

    Returns q, k [batch, time, key_heads, d] and v [batch, time, value_heads, d] in the dtype of q, g and beta in float32
    (float64 for float64), and the new tail. All is computed in the latter dtype and rounded once. Backward keeps only the
    inputs; no second derivative.
    Raises ValueError, naming the tensor, for a wrong shape, dtype or backend.
    Source: the layer of arXiv 2412.06464, with the channels of Qwen3.5's.
    """
    choice.check(backend)
    _check(q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail, valid, key_heads)
    order = None if valid is None else packing(valid, conv_q.shape[1] - 1)
    return _INPUTS(
        q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail, order, key_heads, float(strength), backend
    )


def packing(valid: Tensor, before: int) -> Tensor:
    """The tokens of cat(tail, x) with padding moved to the front and real tokens, in order, behind it: [batch, before + time]
    int32, position s for a real token and -1 - s for a padded one. The tail's `before` tokens are real."""
    real = torch.cat([valid.new_ones((valid.shape[0], before)), valid], 1)
    order = real.to(torch.uint8).argsort(dim=1, stable=True)
    return torch.where(real.gather(1, order), order, -1 - order).to(torch.int32)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    conv_q: Tensor,
    conv_k: Tensor,
    conv_v: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None,
    valid: Tensor | None,
    key_heads: int,
) -> None:
    if q.dim() != 3 or 0 in q.shape or q.shape[2] % key_heads:
        raise ValueError(
            f"q has shape {list(q.shape)}; it must be [batch, time, d * {key_heads} key heads], none of them 0"
        )
    if a.dim() != 3 or a.shape[2] == 0 or a.shape[2] % key_heads:
        raise ValueError(f"a has shape {list(a.shape)}; it must be [batch, time, a multiple of {key_heads} key heads]")
    batch, time, keys = q.shape
    heads, d, kernel = a.shape[2], keys // key_heads, conv_q.shape[-1]
    expected = (
        ("k", k, (batch, time, keys)),
        ("v", v, (batch, time, heads * d)),
        ("a", a, (batch, time, heads)),
        ("b", b, (batch, time, heads)),
        ("conv_q", conv_q, (keys, kernel)),
        ("conv_k", conv_k, (keys, kernel)),
        ("conv_v", conv_v, (heads * d, kernel)),
        ("a_log", a_log, (heads,)),
        ("dt_bias", dt_bias, (heads,)),
        ("tail", tail, (batch, kernel - 1, key_heads, 2 * d + heads // key_heads * d)),
        ("valid", valid, (batch, time)),
    )
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(f"valid has dtype {valid.dtype}; it must be bool")
    if not q.is_floating_point():
        raise ValueError(f"q has dtype {q.dtype}; it must be a floating-point tensor")
    wide = computing_dtype(q)
    for name, tensor in (("k", k), ("v", v), ("tail", tail)):
        if tensor is not None and tensor.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be that of q, {q.dtype}")
    for name, tensor in (("a", a), ("b", b), ("conv_q", conv_q), ("conv_k", conv_k), ("conv_v", conv_v)):
        if tensor.dtype not in (q.dtype, wide):
            raise ValueError(f"{name} has dtype {tensor.dtype}; with q in {q.dtype} it must be {wide}")


def _launch(q: Tensor, v: Tensor, key_heads: int, backend: str) -> Any:
    d = q.shape[2] // key_heads
    plan = choice.launches("delta_inputs", backend, q.device, q.dtype, d)
    return None if plan is None or not choice.addressable(q, v) else plan.prep


def _contiguous(tensors: Any) -> Any:
    return [None if t is None else t.contiguous() for t in tensors]


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, (key_heads, strength, backend) = arguments[:12], arguments[12:]
    launch = _launch(tensors[0], tensors[2], key_heads, backend)
    if launch is None:
        return chunked_inputs.forward(*arguments[:-1])
    from sleep_kernels import triton_prep

    with torch.cuda.device_of(tensors[0]):
        return triton_prep.forward(*_contiguous(tensors), key_heads, strength, launch)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    grads, tensors, (key_heads, strength, backend) = arguments[:6], arguments[6:18], arguments[18:]
    launch = _launch(tensors[0], tensors[2], key_heads, backend)
    if launch is None:
        return chunked_inputs.backward(grads, *arguments[6:-1])
    from sleep_kernels import triton_prep_backward

    with torch.cuda.device_of(tensors[0]):
        return triton_prep_backward.backward(_contiguous(grads), *_contiguous(tensors), key_heads, strength, launch)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, conv_q: Tensor, *others: Any) -> Any:
    key_heads = others[-3]
    d = q.shape[2] // key_heads
    keys = [q.new_empty((*q.shape[:2], key_heads, d)) for _ in range(2)]
    gates = [a.new_empty(a.shape, dtype=computing_dtype(q)) for _ in range(2)]
    values = q.new_empty((*v.shape[:2], a.shape[2], d))
    return (*keys, values, *gates, _tail(q, conv_q, key_heads, a))


def _tail(q: Tensor, conv_q: Tensor, key_heads: int, a: Tensor) -> Tensor:
    d = q.shape[2] // key_heads
    return q.new_empty((q.shape[0], conv_q.shape[1] - 1, key_heads, (2 + a.shape[2] // key_heads) * d))


def _backward_fake(*arguments: Any) -> Any:
    inputs = arguments[6:]
    return (*(t.new_empty(t.shape) for t in inputs[:10]), _tail(inputs[0], inputs[5], inputs[-3], inputs[3]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[12:]
    ctx.save_for_backward(*inputs[:12])


def _autograd(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    *results, d_tail = _INPUTS_BACKWARD(*grads, *ctx.saved_tensors, *ctx.options)
    return *results, d_tail if ctx.needs_input_grad[10] else None, None, None, None, None


_NAMES = ("q", "k", "v", "a", "b", "conv_q", "conv_k", "conv_v", "a_log", "dt_bias")
_ARGUMENTS = ", ".join(f"Tensor {name}" for name in _NAMES)
_ARGUMENTS += ", Tensor? tail, Tensor? order, int key_heads, float strength, str backend"


def _results(count: int) -> str:
    return ", ".join(["Tensor"] * count)


_INPUTS = operator("delta_inputs", f"({_ARGUMENTS}) -> ({_results(6)})", _forward, _forward_fake)
_INPUTS_BACKWARD = operator(
    "delta_inputs_backward",
    f"(Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor d_tail, {_ARGUMENTS}) -> ({_results(11)})",
    _backward,
    _backward_fake,
)
differentiable("delta_inputs", _setup, _autograd)
once_differentiable("delta_inputs_backward")
