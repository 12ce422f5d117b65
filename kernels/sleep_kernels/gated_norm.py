"""Gated RMSNorm: RMS normalisation of a head's output, multiplied by a SiLU gate."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import dispatch
from sleep_kernels.common import compute_dtype, even_slices
from sleep_kernels.register import forbid_double_backward, register_backward, register_operator
from sleep_kernels.verified import KernelLaunch


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, backend: str = "auto") -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight * silu(gate), over the last dimension.

    x, gate: [..., d_v], any floating dtypes. weight: [d_v]. Computed in float32 (float64 if x is float64) and returned
    in the dtype of gate, as in transformers' Qwen3_5RMSNormGated. Backward saves only the inputs; there is no second
    derivative.
    backend: "chunked" (plain torch), "triton" (one kernel each for forward and backward; d_v a power of two) or "auto":
        "triton" on a GPU for which it has been verified (see verified.py), else "chunked".
    Raises ValueError, naming the tensor, for a wrong shape, dtype or backend.
    Source: the output norm of arXiv 2412.06464; RMSNorm is Zhang & Sennrich, arXiv 1910.07467.
    """
    dispatch.check_backend(backend)
    if x.dim() == 0 or 0 in x.shape:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [..., d_v], not empty")
    if gate.shape != x.shape:
        raise ValueError(f"gate has shape {list(gate.shape)}; it must have the shape of x, {list(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [d_v] = [{x.shape[-1]}]")
    for name, tensor in (("x", x), ("gate", gate), ("weight", weight)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be a floating-point tensor")
    return _NORM(x, gate, weight, eps, backend)


def _rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt_((x * x).mean(-1, keepdim=True).add_(eps))


def _launch(x: Tensor, gate: Tensor, backend: str) -> KernelLaunch | None:
    if backend == "auto" and x.dtype == torch.float64:
        return None
    config = dispatch.select_config("gated_rms_norm", backend, gate.device, gate.dtype, x.shape[-1])
    return None if config is None else config.norm


def _forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str) -> Tensor:
    launch = _launch(x, gate, backend)
    if launch:
        from sleep_kernels import triton_norm

        with torch.cuda.device_of(x):
            return triton_norm.forward(x.contiguous(), gate.contiguous(), weight.contiguous(), eps, launch)
    dtype, width = compute_dtype(x), x.shape[-1]
    y = gate.new_empty(gate.shape)
    rows, gates, results = x.reshape(-1, width), gate.reshape(-1, width), y.view(-1, width)
    weight = weight.to(dtype)
    for part in even_slices(rows.shape[0], width * dtype.itemsize, x):
        wide = rows[part].to(dtype)
        gated = F.silu(gates[part].to(dtype)).mul_(wide).mul_(_rstd(wide, eps))
        torch.mul(gated, weight, out=results[part])
    return y


def _backward(
    grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    launch = _launch(x, gate, backend)
    if launch:
        from sleep_kernels import triton_norm

        x, gate, weight = x.contiguous(), gate.contiguous(), weight.contiguous()
        with torch.cuda.device_of(x):
            return triton_norm.backward(grad_y.contiguous(), x, gate, weight, eps, launch)
    dtype, width = compute_dtype(x), x.shape[-1]
    dx, d_gate = x.new_empty(x.shape), gate.new_empty(gate.shape)
    rows, gates, grads = x.reshape(-1, width), gate.reshape(-1, width), grad_y.reshape(-1, width)
    scale = weight.to(dtype)
    d_scale = torch.zeros_like(scale)
    for part in even_slices(rows.shape[0], width * dtype.itemsize, x):
        wide, z, dy = rows[part].to(dtype), gates[part].to(dtype), grads[part].to(dtype)
        rstd = _rstd(wide, eps)
        normal, silu = wide * rstd, F.silu(z)
        product = dy * normal
        d_scale += (product * silu).sum(0)
        d_gate.view(-1, width)[part].copy_(torch.ops.aten.silu_backward(product.mul_(scale), z))
        d_normal = silu.mul_(dy).mul_(scale)
        mean = torch.mul(d_normal, normal, out=product).mean(-1, keepdim=True)
        dx.view(-1, width)[part].copy_(d_normal.addcmul_(normal, mean, value=-1).mul_(rstd))
    return dx, d_gate, d_scale.to(weight.dtype)


def _forward_fake(x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str) -> Tensor:
    return gate.new_empty(gate.shape)


def _backward_fake(grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str) -> Any:
    return x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, gate, weight, *ctx.options = inputs
    ctx.save_for_backward(x, gate, weight)


def _autograd(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_NORM_BACKWARD(grad_y, *ctx.saved_tensors, *ctx.options), None, None


_INPUTS = "Tensor x, Tensor gate, Tensor weight, float eps, str backend"
_NORM = register_operator("gated_rms_norm", f"({_INPUTS}) -> Tensor", _forward, _forward_fake)
_NORM_BACKWARD = register_operator(
    "gated_rms_norm_backward", f"(Tensor grad_y, {_INPUTS}) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake
)
register_backward("gated_rms_norm", _setup, _autograd)
forbid_double_backward("gated_rms_norm_backward")
