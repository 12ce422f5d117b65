"""Gated RMSNorm in Triton, forward and backward: y = x / sqrt(mean(x^2) + eps) * weight * silu(gate) over rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sleep_kernels.compilation import kernel
from sleep_kernels.triton_common import round_to
from sleep_kernels.triton_partial_sums import partial_sums
from sleep_kernels.verified import KernelLaunch

# Largest number of programs in backward. Independent of the GPU, so that weight's gradient is summed in a fixed order.
_MAX_PROGRAMS = 512


@triton.jit
def _load_rows(x, first, count, D: tl.constexpr, ROWS: tl.constexpr):
    """Load ROWS rows of x [count, D] from row `first` in float32."""
    row = first + tl.arange(0, ROWS)
    at = row[:, None].to(tl.int64) * D + tl.arange(0, D)[None, :]
    return tl.load(x + at, mask=(row < count)[:, None], other=0.0).to(tl.float32)


@triton.jit
def _store_rows(x, value, first, count, D: tl.constexpr, ROWS: tl.constexpr):
    """Store ROWS rows of x [count, D] from row `first`."""
    row = first + tl.arange(0, ROWS)
    at = row[:, None].to(tl.int64) * D + tl.arange(0, D)[None, :]
    tl.store(x + at, round_to(value, x.dtype.element_ty), mask=(row < count)[:, None])


@kernel(do_not_specialize=["count"])
def norm_kernel(x, gate, weight, y, count, eps, D: tl.constexpr, ROWS: tl.constexpr):
    """One program per ROWS rows of [count, D]."""
    first = tl.program_id(0) * ROWS
    wide = _load_rows(x, first, count, D, ROWS)
    z = _load_rows(gate, first, count, D, ROWS)
    scale = tl.load(weight + tl.arange(0, D)).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)
    result = wide * rstd[:, None] * scale[None, :] * z * tl.sigmoid(z)
    _store_rows(y, result, first, count, D, ROWS)


@kernel(do_not_specialize=["count", "steps"])
def norm_backward_kernel(
    grad, x, gate, weight, dx, d_gate, d_weight, count, steps, eps, D: tl.constexpr, ROWS: tl.constexpr
):
    """One program per `steps` blocks of ROWS rows; d_weight [programs, D] float32 are partial sums of weight's gradient."""
    scale = tl.load(weight + tl.arange(0, D)).to(tl.float32)[None, :]
    total = tl.zeros((D,), tl.float32)
    for step in range(steps):
        first = (tl.program_id(0) * steps + step) * ROWS
        dy = _load_rows(grad, first, count, D, ROWS)
        wide = _load_rows(x, first, count, D, ROWS)
        z = _load_rows(gate, first, count, D, ROWS)
        rstd = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)[:, None]
        normal = wide * rstd
        sigmoid = tl.sigmoid(z)
        total += tl.sum(dy * normal * z * sigmoid, 0)
        _store_rows(d_gate, dy * normal * scale * sigmoid * (1 + z * (1 - sigmoid)), first, count, D, ROWS)
        d_normal = dy * scale * z * sigmoid
        mean = (tl.sum(d_normal * normal, 1) / D)[:, None]
        _store_rows(dx, (d_normal - normal * mean) * rstd, first, count, D, ROWS)
    tl.store(d_weight + tl.program_id(0) * D + tl.arange(0, D), total)


def forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float, launch: KernelLaunch) -> Tensor:
    """y, as `sleep_kernels.gated_rms_norm` returns it; tensors contiguous, d_v a power of two."""
    y, width = torch.empty_like(gate), x.shape[-1]
    count = x.numel() // width
    norm_kernel[(triton.cdiv(count, launch.block),)](
        x, gate, weight, y, count, eps, D=width, ROWS=launch.block, num_warps=launch.warps
    )
    return y


def backward(
    grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float, launch: KernelLaunch
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate and weight; tensors contiguous, d_v a power of two."""
    width = x.shape[-1]
    count = x.numel() // width
    blocks = triton.cdiv(count, launch.block)
    steps = triton.cdiv(blocks, _MAX_PROGRAMS)
    programs = triton.cdiv(blocks, steps)
    dx, d_gate = torch.empty_like(x), torch.empty_like(gate)
    d_weight = x.new_empty((programs, width), dtype=torch.float32)
    norm_backward_kernel[(programs,)](
        grad,
        x,
        gate,
        weight,
        dx,
        d_gate,
        d_weight,
        count,
        steps,
        eps,
        D=width,
        ROWS=launch.block,
        num_warps=launch.warps,
    )
    return dx, d_gate, partial_sums(d_weight, [weight])[0]
