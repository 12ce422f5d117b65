"""Checks of the arguments of delta_inputs: shapes and dtypes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sleep_kernels.common import DeltaInputTensors, compute_dtype


def check_parts(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, key_heads: int) -> None:
    """Raise ValueError for the first projection of a wrong shape or dtype."""
    if q.dim() != 3 or 0 in q.shape or q.shape[2] % key_heads:
        raise ValueError(
            f"q has shape {list(q.shape)}; it must be [batch, time, d * {key_heads} key heads], none of them 0"
        )
    if a.dim() != 3 or a.shape[2] == 0 or a.shape[2] % key_heads:
        raise ValueError(f"a has shape {list(a.shape)}; it must be [batch, time, a multiple of {key_heads} key heads]")
    batch, time, keys = q.shape
    values = (batch, time, a.shape[2] * (keys // key_heads))
    _check_shapes((("k", k, q.shape), ("v", v, values), ("a", a, (batch, time, a.shape[2])), ("b", b, a.shape)))
    _check_dtypes(q, "q", (("k", k), ("v", v)), (("a", a), ("b", b)))


def check(t: DeltaInputTensors, valid: Tensor | None, starts: Tensor | None, key_heads: int) -> None:
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
    _check_shapes(expected)
    for name, tensor in (("valid", valid), ("starts", starts)):
        if tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be bool")
    gates = [("ba", ba), ("conv_q", t.conv_q), ("conv_k", t.conv_k), ("conv_v", t.conv_v)]
    _check_dtypes(x, "qkv", (("tail", t.tail),), gates)


def _check_shapes(expected: Iterable[tuple[str, Tensor | None, tuple[int, ...]]]) -> None:
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def _check_dtypes(
    x: Tensor, of: str, same: Iterable[tuple[str, Tensor | None]], wide: Iterable[tuple[str, Tensor]]
) -> None:
    """Raise ValueError unless `x`, called `of`, is floating-point, `same` have its dtype, and `wide` that or a wider one."""
    if not x.is_floating_point():
        raise ValueError(f"{of} has dtype {x.dtype}; it must be a floating-point tensor")
    for name, tensor in same:
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be that of {of}, {x.dtype}")
    widest = compute_dtype(x)
    for name, tensor in wide:
        if tensor.dtype not in (x.dtype, widest):
            raise ValueError(f"{name} has dtype {tensor.dtype}; with {of} in {x.dtype} it must be {widest}")
