"""Reference of delta_inputs, written sequence by sequence as it is defined, and inputs to compare implementations on."""

import itertools
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
# First tokens of documents of two sequences, at real tokens of every mask: none in one; next to each other and at the end.
STARTS: dict[str, Callable[[int], list[list[bool]]]] = {
    "one row": lambda time: [[t == 2 for t in range(time)], [False] * time],
    "many": lambda time: [
        [t in (0, 2, 3, 8, time - 1) for t in range(time)],
        [t % 5 > 1 and t % 7 < 2 and t > 2 for t in range(time)],
    ],
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


def starts_of(name: str | None, time: int, valid: Tensor | None) -> Tensor | None:
    """First tokens of documents; where `valid` masks one, there is none."""
    starts = None if name is None else torch.tensor(STARTS[name](time))
    return starts if starts is None or valid is None else starts & valid


def reference(
    inputs: list[Any], valid: Tensor | None, starts: Tensor | None, key_heads: int, strength: float
) -> tuple[Tensor, ...]:
    """Results per sequence: torch's convolution over the real tokens of one document after the other, which begins with zeros in
    place of a tail; padded tokens get zeros."""
    q, k, v, a, b, conv_q, conv_k, conv_v, a_log, dt_bias, tail = inputs
    batch, time, d, history = *q.shape[:2], q.shape[2] // key_heads, conv_q.shape[1] - 1
    heads = a.shape[2]
    if tail is None:
        tail = q.new_zeros(batch, history, key_heads, (2 + heads // key_heads) * d)
    parts = [(q, conv_q, slice(0, d)), (k, conv_k, slice(d, 2 * d)), (v, conv_v, slice(2 * d, None))]
    outputs: list[list[Tensor]] = [[], [], [], [], [], []]
    for row in range(batch):
        real = torch.arange(time) if valid is None else valid[row].nonzero()[:, 0]
        first = torch.zeros(len(real), dtype=torch.bool) if starts is None else starts[row, real]
        cuts = [0, *first.nonzero()[:, 0].tolist(), len(real)]
        ends = []
        for i, (x, weight, channels) in enumerate(parts):
            before, pieces = tail[row, :, :, channels].flatten(1), []
            for n, (start, stop) in enumerate(itertools.pairwise(cuts)):
                padded = torch.cat([torch.zeros_like(before) if n else before, x[row, real[start:stop]]])
                if stop > start:
                    pieces.append(F.conv1d(padded.mT[None], weight[:, None], groups=len(weight))[0].mT)
            ends.append(padded[len(padded) - history :].unflatten(1, (key_heads, -1)))
            y = torch.cat(pieces) if pieces else padded[:0]
            y = F.silu(y).unflatten(1, (-1, d))
            if i < 2:
                y = y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt()
            outputs[i].append(y.new_zeros(time, *y.shape[1:]).index_copy(0, real, y))
        g = -a_log.exp() * F.softplus(a[row, real] + dt_bias)
        g = torch.where(first[:, None], -torch.inf, g)
        beta = strength / (1 + (-b[row, real]).exp())
        for i, gate in ((3, g), (4, beta)):
            outputs[i].append(gate.new_zeros(time, heads).index_copy(0, real, gate))
        outputs[5].append(torch.cat(ends, 2))
    return tuple(torch.stack(rows) for rows in outputs)


def side_by_side(inputs: list[Any]) -> list[Any]:
    """The tensor arguments of `delta_inputs` from the tensors ARGUMENTS and what follows them."""
    q, k, v, a, b, *others = inputs
    return [torch.cat([q, k, v], 2), torch.cat([b, a], 2), *others]


def separate_inputs(*inputs: Any, **options: Any) -> tuple[Tensor, ...]:
    """`delta_inputs` of q, k, v, a and b as tensors of their own."""
    return delta_inputs(*side_by_side(list(inputs)), **options)


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


def differences(
    backend: str, inputs: list[Any], valid: Tensor | None, starts: Tensor | None, key_heads: int, strength: float
) -> list[Any]:
    """By name, the largest difference from the float64 reference, relative to its largest element or to one if that is larger."""

    def ours(leaves: list[Any]) -> tuple[Tensor, ...]:
        return separate_inputs(*leaves, valid, starts, key_heads=key_heads, strength=strength, backend=backend)

    actual = run(ours, inputs)
    wide = [None if t is None else t.double() for t in inputs]
    expected = run(lambda leaves: reference(leaves, valid, starts, key_heads, strength), wide)
    pairs = zip(NAMES, actual, expected, strict=False)
    return [(name, _difference(a.double(), b)) for name, a, b in pairs if b.numel()]


def _difference(a: Tensor, b: Tensor) -> float:
    """Equal infinities do not differ."""
    same = b.isinf() & (a == b)
    a, b = a.masked_fill(same, 0), b.masked_fill(same, 0)
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
