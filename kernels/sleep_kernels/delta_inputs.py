"""From a layer's projections to the inputs of the gated delta rule: convolution, SiLU, L2 norm, gates."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import choice, verified
from sleep_kernels.register import differentiable, once_differentiable, operator
from sleep_kernels.short_conv import short_conv
from sleep_kernels.verified import Launch

EPS = 1e-6  # of the L2 norm


def delta_inputs(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None = None,
    *,
    key_heads: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, new_tail = short_conv(x, weight, tail); q, k = L2-normed, v = parts of y; g = -exp(a_log) softplus(a + dt_bias);
    beta = sigmoid(b).

    x: [batch, time, channels], channels laid out by key head: its q (d), its k (d), its value heads (r * d).
    a, b: [batch, time, value_heads], value_heads = r * key_heads. a_log, dt_bias: [value_heads].
    weight: [channels, kernel] and tail: [batch, kernel - 1, channels], as in short_conv.
    backend: "torch"; "triton" (one kernel each way; d a power of two); "auto": "triton" where the table of verified.py
        has it verified on such a GPU, else "torch".

    Returns q, k [batch, time, key_heads, d] and v [batch, time, value_heads, d] in the dtype of x, g and beta in
    float32 (float64 for float64), and new_tail. "triton" rounds once where "torch" rounds the convolution's result first.
    Raises ValueError, naming the tensor, for a wrong shape or backend.
    """
    _check(x, a, b, a_log, dt_bias, key_heads, backend)
    d = _width(x, a.shape[2], key_heads)
    if backend == "triton" or (backend == "auto" and x.is_cuda and _verified(x.device, x.dtype, d)):
        return _INPUTS(x, a, b, weight, a_log, dt_bias, tail, key_heads)
    batch, time, _ = x.shape
    y, tail = short_conv(x, weight, tail)
    heads = y.view(batch, time, key_heads, -1)
    q, k = (_l2_norm(heads[..., i * d : (i + 1) * d]) for i in range(2))
    v = heads[..., 2 * d :].reshape(batch, time, -1, d)
    wide = torch.promote_types(x.dtype, torch.float32)
    g = -a_log.to(wide).exp() * F.softplus(a.to(wide) + dt_bias.to(wide))
    return q, k, v, g, torch.sigmoid(b.to(wide)), tail


def _check(x: Tensor, a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor, key_heads: int, backend: str) -> None:
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend {backend!r} is not offered; choose one of auto, torch, triton")
    if x.dim() != 3 or a.dim() != 3 or a.shape[:2] != x.shape[:2] or a.shape[2] % key_heads:
        raise ValueError(
            f"x has shape {list(x.shape)} and a {list(a.shape)}; they must be [batch, time, channels] and "
            f"[batch, time, a multiple of {key_heads} key heads]"
        )
    if x.shape[2] % (2 * key_heads + a.shape[2]):
        raise ValueError(f"x has {x.shape[2]} channels; they must be d * (2 * {key_heads} + {a.shape[2]}) for some d")
    for name, tensor, shape in (("b", b, a.shape), ("a_log", a_log, a.shape[2:]), ("dt_bias", dt_bias, a.shape[2:])):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def _width(x: Tensor, value_heads: int, key_heads: int) -> int:
    return x.shape[2] // (2 * key_heads + value_heads)


def _l2_norm(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPS)).to(x.dtype)


def _verified(device: torch.device, dtype: torch.dtype, d: int) -> bool:
    return choice.for_gpu("delta_inputs", device, dtype, d, d, verified_only=True) is not None


# What torch.compiler.assume_constant_result does, which imports torch's whole compiler and Triton to do it.
_verified._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _launch(x: Tensor, a: Tensor, key_heads: int) -> Launch:
    d = _width(x, a.shape[2], key_heads)
    if x.is_cuda:
        plan = choice.for_gpu("delta_inputs", x.device, x.dtype, d, d, verified_only=False)
    else:
        plan = verified.interpreted() if choice.interpreting() else None
    if plan is None:
        raise ValueError(
            f"backend 'triton' has no kernel for {x.dtype}, d = {d} on {x.device}; choose 'torch' or 'auto'"
        )
    return plan.prep


def _contiguous(*tensors: Tensor | None) -> Any:
    return [None if t is None else t.contiguous() for t in tensors]


def _forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None,
    key_heads: int,
) -> tuple[Tensor, ...]:
    from sleep_kernels import triton_prep

    launch = _launch(x, a, key_heads)
    x, a, b, weight, a_log, dt_bias, tail = _contiguous(x, a, b, weight, a_log, dt_bias, tail)
    with torch.cuda.device_of(x):
        return triton_prep.forward(x, a, b, weight, a_log, dt_bias, tail, key_heads, launch)


def _backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dg: Tensor,
    dbeta: Tensor,
    grad_tail: Tensor | None,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    tail: Tensor | None,
    key_heads: int,
) -> tuple[Tensor, ...]:
    from sleep_kernels import triton_prep

    launch = _launch(x, a, key_heads)
    grads = tuple(_contiguous(dq, dk, dv, dg, dbeta))
    x, a, b, weight, a_log, dt_bias, tail = _contiguous(x, a, b, weight, a_log, dt_bias, tail)
    (grad_tail,) = _contiguous(grad_tail)
    with torch.cuda.device_of(x):
        return triton_prep.backward(grads, grad_tail, x, a, b, weight, a_log, dt_bias, tail, key_heads, launch)


def _forward_fake(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, a_log: Any, dt_bias: Any, tail: Any, key_heads: int
) -> Any:
    batch, time, channels = x.shape
    d = _width(x, a.shape[2], key_heads)
    keys = [x.new_empty((batch, time, key_heads, d)) for _ in range(2)]
    gates = [a.new_empty(a.shape, dtype=torch.float32) for _ in range(2)]
    values, new_tail = x.new_empty((batch, time, a.shape[2], d)), x.new_empty((batch, weight.shape[1] - 1, channels))
    return (*keys, values, *gates, new_tail)


def _backward_fake(dq: Any, dk: Any, dv: Any, dg: Any, dbeta: Any, grad_tail: Any, *inputs: Any) -> Any:
    x, weight = inputs[0], inputs[3]
    tail = x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[2]))
    return (*(t.new_empty(t.shape) for t in inputs[:6]), tail)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.key_heads = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    *results, d_tail = _INPUTS_BACKWARD(*grads, *ctx.saved_tensors, ctx.key_heads)
    return *results, d_tail if ctx.needs_input_grad[6] else None, None


_ARGUMENTS = "Tensor x, Tensor a, Tensor b, Tensor weight, Tensor a_log, Tensor dt_bias, Tensor? tail, int key_heads"
_RESULTS = ", ".join(["Tensor"] * 6)
_INPUTS = operator("delta_inputs", f"({_ARGUMENTS}) -> ({_RESULTS})", _forward, _forward_fake)
_INPUTS_BACKWARD = operator(
    "delta_inputs_backward",
    "(Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor? grad_tail, "
    f"{_ARGUMENTS}) -> ({_RESULTS}, Tensor)",
    _backward,
    _backward_fake,
)
differentiable("delta_inputs", _setup, _autograd)
once_differentiable("delta_inputs_backward")
