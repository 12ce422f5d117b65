"""The dynamic convolution against a loop over documents and tokens in float64: results, tails and gradients."""

import itertools

import pytest
import torch
from torch import Tensor

from sleep_kernels import dynamic_conv

BATCH, TIME, CHANNELS = 2, 7, 3


def plain(
    x: Tensor, taps: Tensor, static: Tensor, tail: Tensor, valid: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Token by token: the newest `kernel` inputs of the token's document, each times its tap."""
    kernel, rows, tails = static.shape[1], [], []
    for row in range(x.shape[0]):
        read, outputs = list(tail[row]), []
        for t in range(x.shape[1]):
            if not valid[row, t]:
                outputs.append(torch.zeros_like(x[row, t]))
                continue
            if starts[row, t]:
                read = [torch.zeros_like(inputs) for inputs in read]
            read = [*read, x[row, t]][-kernel:]
            z = sum(((taps[row, t] + static)[:, j] * inputs for j, inputs in enumerate(read)), torch.zeros(()))
            outputs.append(z * torch.sigmoid(z))
            read = read[1:]
        rows.append(torch.stack(outputs))
        tails.append(torch.stack(read) if read else tail[row])
    return torch.stack(rows), torch.stack(tails)


def inputs(kernel: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(kernel)
    shapes = [
        (BATCH, TIME, CHANNELS),
        (BATCH, TIME, CHANNELS, kernel),
        (CHANNELS, kernel),
        (BATCH, kernel - 1, CHANNELS),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


VALID = torch.tensor([[False, True, True, False, True, True, True], [True, True, True, False, False, False, False]])
STARTS = torch.tensor(
    [[False, False, True, False, True, False, False], [False, True, False, False, False, False, False]]
)
ALL, NONE = torch.ones(BATCH, TIME, dtype=torch.bool), torch.zeros(BATCH, TIME, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kernel", "padded", "packed"), itertools.product([1, 2, 4], [False, True], [False, True])
)  # fmt: skip
def test_results_tails_and_gradients_are_those_of_the_loop(kernel: int, padded: bool, packed: bool) -> None:
    valid, starts = VALID if padded else None, STARTS if packed else None
    leaves = inputs(kernel)
    found = dynamic_conv(*leaves, valid, starts)
    wanted = plain(*leaves, ALL if valid is None else valid, NONE if starts is None else starts)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in wanted]
    gradients = [
        torch.autograd.grad(sum((y * w).sum() for y, w in zip(ys, weights, strict=True)), leaves, allow_unused=True)
        for ys in (found, wanted)
    ]
    for one, other in (*zip(found, wanted, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-12, atol=1e-12)


def test_pieces_with_their_tail_are_the_whole() -> None:
    x, taps, static, tail = (tensor.detach() for tensor in inputs(4))
    whole, last = dynamic_conv(x, taps, static, tail)
    outputs = []
    for first, stop in ((0, 1), (1, 2), (2, 5), (5, 7)):
        y, tail = dynamic_conv(x[:, first:stop], taps[:, first:stop], static, tail)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(tail, last)


def test_half_precision_is_computed_in_float32() -> None:
    half = [tensor.detach().bfloat16() for tensor in inputs(4)]
    y, tail = dynamic_conv(*half)
    wanted, _ = dynamic_conv(*(tensor.double() for tensor in half))
    assert y.dtype == tail.dtype == torch.bfloat16
    assert (y.double() - wanted).norm() / wanted.norm() < 3.7e-3


def test_wrong_shapes_are_named() -> None:
    x, taps, static, tail = (tensor.detach() for tensor in inputs(4))
    for arguments, name in (
        ((x[0], taps, static, tail), "x"),
        ((x, taps[..., :3], static, tail), "taps"),
        ((x, taps, static[:2], tail), "static"),
        ((x, taps, static, tail[:, :2]), "tail"),
    ):
        with pytest.raises(ValueError, match=f"^{name} has shape"):
            dynamic_conv(*arguments)
