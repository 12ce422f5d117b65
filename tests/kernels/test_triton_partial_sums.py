"""The sum of partial gradients of weights, in Triton's interpreter, against float64."""

from collections.abc import Callable
from typing import Any

import torch

ROWS = [1, 63, 64, 65, 200]  # around the tile of 64 rows
SHAPES = [[(1,)], [(31,)], [(32,)], [(8, 4), (1,)], [(24, 4), (8, 4), (3,), (3,)]]  # around its 32 columns
DTYPES = [[torch.bfloat16], [torch.float32], [torch.bfloat16, torch.float32]]


def sums_of(rows: int, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> list[tuple[torch.Tensor, ...]]:
    """For each weight the gradient and the sum in float64."""
    from sleep_kernels.triton_partial_sums import partial_sums

    width = sum(torch.Size(shape).numel() for shape in shapes)
    partial = torch.randn((rows, width), generator=torch.Generator().manual_seed(rows))
    weights = [torch.empty(shape, dtype=dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]
    exact = partial.double().sum(0).split([weight.numel() for weight in weights])
    gradients = partial_sums(partial, weights)
    for gradient, weight in zip(gradients, weights, strict=True):
        assert gradient.dtype == weight.dtype
    return [(g, e.view(w.shape)) for g, e, w in zip(gradients, exact, weights, strict=True)]


def test_sums_in_float32_and_rounds_once(interpreted: Callable[..., Any]) -> None:
    for rows in ROWS:
        for shapes in SHAPES:
            for dtypes in DTYPES:
                for gradient, exact in interpreted(sums_of, rows, shapes, dtypes):
                    digits = 2e-6 if gradient.dtype == torch.float32 else 2**-8
                    torch.testing.assert_close(gradient.double(), exact, rtol=digits, atol=1e-5)
