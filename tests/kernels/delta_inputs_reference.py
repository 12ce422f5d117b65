"""Reference of delta_inputs, written sequence by sequence as it is defined, and inputs to compare implementations on."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import delta_inputs

ARGUMENTS = ("q", "k", "v", "a", "b", "conv_q", "conv_k", "conv_v", "a_log", "dt_bias", "tail")
RESULTS = ("q", "k", "v", "g", "beta", "new_tail")
NAMES = (*RESULTS, *(f"gradient of {name}" for name in ARGUMENTS))
# Masks of real tokens of two sequences: padding on the right, at scattered positions, everywhere.
MASKS: dict[str, Callable[[int], list[list[bool]]]] = {
    "right": lambda time: [[t < time - 2 for t in range(time)], [t < 1 for t in range(time)]],
    "scattered": lambda time: [[t % 3 != 1 for t in range(time)], [t % 5 > 1 for t in range(time)]],
    "all": lambda time: [[False] * time, [True] * time],
}


def make_inputs(
    time: int, group: int = 1, tail: bool = True, key_heads: int = 1, d: int = 16, kernel: int = 4, seed: int = 0
) -> list[Any]:
    """The tensors ARGUMENTS of two sequences in float32."""
    generator = torch.Generator().manual_seed(100 * seed + time)
    keys, heads = key_heads * d, key_heads * group
    shapes = [(2, time, keys), (2, time, keys), (2, time, heads * d), (2, time, heads), (2, time, heads)]
    shapes += [(keys, kernel), (keys, kernel), (heads * d, kernel), (heads,), (heads,)]
    inputs: list[Any] = [torch.randn(shape, generator=generator) for shape in shapes]
    end = torch.randn(2, kernel - 1, key_heads, (2 + group) * d, generator=generator)
    return [*inputs, end if tail else None]


def mask(name: str | None, time: int) -> Tensor | None:
    return None if name is None else torch.tensor(MASKS[name](time))


def reference(inputs: list[Any], valid: Tensor | None, key_heads: int, strength: float) -> tuple[Tensor, ...]:
    """Results per sequence: torch's convolution over its real tokens only; padded tokens get zeros."""
    q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail = inputs
    batch, time, d, history = *q.shape[:2], q.shape[2] // key_heads, conv_q.shape[1] - 1
    heads = a.shape[2]
    if tail is None:
        tail = q.new_zeros(batch, history, key_heads, (2 + heads // key_heads) * d)
    parts = [(q, conv_q, slice(0, d)), (k, conv_k, slice(d, 2 * d)), (v, conv_v, slice(2 * d, None))]
    outputs: list[list[Tensor]] = [[], [], [], [], [], []]
    for row in range(batch):
        real = torch.arange(time) if valid is None else valid[row].nonzero()[:, 0]
        ends = []
        for i, (x, weight, channels) in enumerate(parts):
            padded = torch.cat([tail[row, :, :, channels].flatten(1), x[row, real]])
            ends.append(padded[len(padded) - history :].unflatten(1, (key_heads, -1)))
            y = F.conv1d(padded.mT[None], weight[:, None], groups=len(weight))[0].mT if len(real) else padded[:0]
            y = F.silu(y).unflatten(1, (-1, d))
            if i < 2:
                y = y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt()
            outputs[i].append(y.new_zeros(time, *y.shape[1:]).index_copy(0, real, y))
        g = -a_log.exp() * F.softplus(a[row, real] + dt_bias)
        beta = strength / (1 + (-b[row, real]).exp())
        for i, gate in ((3, g), (4, beta)):
            outputs[i].append(gate.new_zeros(time, heads).index_copy(0, real, gate))
        outputs[5].append(torch.cat(ends, 2))
    return tuple(torch.stack(rows) for rows in outputs)


def run(function: Callable[[list[Any]], tuple[Tensor, ...]], inputs: list[Any]) -> list[Tensor]:
    """Results, and gradients of all inputs that are not None, for random gradients of the results."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    results = function(leaves)
    generator = torch.Generator().manual_seed(1)
    # Rounded to bfloat16, so that every dtype represents them exactly.
    weights = [torch.randn(t.shape, generator=generator).bfloat16().to(t.dtype) for t in results]
    return [
        *(t.detach() for t in results),
        *torch.autograd.grad(results, [t for t in leaves if t is not None], weights),
    ]


def differences(backend: str, inputs: list[Any], valid: Tensor | None, key_heads: int, strength: float) -> list[Any]:
    """By name, the largest difference from the float64 reference, relative to its largest element or to one if that is larger."""

    def ours(leaves: list[Any]) -> tuple[Tensor, ...]:
        return delta_inputs(*leaves, valid, key_heads=key_heads, strength=strength, backend=backend)

    actual = run(ours, inputs)
    wide = [None if t is None else t.double() for t in inputs]
    expected = run(lambda leaves: reference(leaves, valid, key_heads, strength), wide)
    pairs = zip(NAMES, actual, expected, strict=False)
    return [(n, ((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item()) for n, a, b in pairs if b.numel()]
