"""Short convolution against torch's conv1d."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import short_conv


def make_inputs(batch: int = 2, time: int = 9, channels: int = 6, kernel: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, time, channels), (channels, kernel), (batch, kernel - 1, channels)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def by_conv1d(x: Tensor, weight: Tensor, tail: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    padded = torch.cat([tail, x], dim=1)
    z = F.conv1d(padded.transpose(1, 2), weight[:, None], groups=weight.shape[0]).transpose(1, 2)
    return F.silu(z) if activation == "silu" else z, padded[:, x.shape[1] :]


@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize(("time", "kernel"), [(9, 4), (1, 4), (2, 4), (3, 4), (5, 2), (5, 1)])
def test_equals_conv1d(time: int, kernel: int, activation: str) -> None:
    inputs = make_inputs(time=time, kernel=kernel)
    expected = by_conv1d(*inputs, activation)
    actual = short_conv(*inputs, activation=activation)
    weights = [torch.randn_like(t) for t in expected]
    for wanted, got in zip(expected, actual, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for wanted, got in zip(*(torch.autograd.grad(r, inputs, weights) for r in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_no_tail_equals_zeros() -> None:
    x, weight, tail = make_inputs()
    for t in (x, x[:, :1]):
        expected = short_conv(t, weight, torch.zeros_like(tail))
        assert all(torch.equal(a, b) for a, b in zip(short_conv(t, weight), expected, strict=True))


def test_windows_chained_by_the_tail_equal_one_window() -> None:
    x, weight, tail = make_inputs(time=11)
    y, end = short_conv(x, weight, tail)
    parts, carried = [], tail
    for piece in x.split([2, 1, 5, 3], dim=1):
        part, carried = short_conv(piece, weight, carried)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    assert torch.equal(carried, end)


def test_gradient_of_the_new_tail_only() -> None:
    inputs = make_inputs(time=2)
    grads = torch.autograd.grad(short_conv(*inputs)[1].sum(), inputs, allow_unused=True)
    assert grads[0].sum() == inputs[0].numel() and not grads[1].any() and grads[2].sum() == 2 * 6


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(short_conv, make_inputs(batch=1, time=4, channels=2))


def test_batch_processed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(batch=5)
    weights = [torch.randn_like(t) for t in short_conv(*inputs)]
    whole = torch.autograd.grad(short_conv(*inputs), inputs, weights)
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 1000})
    for a, b in zip(torch.autograd.grad(short_conv(*inputs), inputs, weights), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_bfloat16_rounds_once() -> None:
    """Bound: 1.5 times the error of rounding the float64 result of the same rounded inputs to bfloat16."""
    narrow = [t.detach().bfloat16().requires_grad_() for t in make_inputs(time=40)]
    wide = [t.detach().double().requires_grad_() for t in narrow]
    expected, actual = by_conv1d(*wide, "silu"), short_conv(*narrow)
    weight = torch.randn_like(actual[0])
    pairs = [
        (actual[0], expected[0]),
        *zip(
            torch.autograd.grad(actual[0], narrow, weight),
            torch.autograd.grad(expected[0], wide, weight.double()),
            strict=True,
        ),
    ]
    for got, wanted in pairs:
        assert got.dtype == torch.bfloat16
        rounding = (wanted.bfloat16().double() - wanted).norm()
        assert (got.double() - wanted).norm() <= 1.5 * rounding


def test_backward_saves_only_the_inputs() -> None:
    inputs = make_inputs(time=64)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        short_conv(*inputs)
    assert 0 < sum(saved) <= 1.2 * sum(t.nbytes for t in inputs)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"x has shape \[9, 6\]"),
        (0, lambda t: t.long(), r"x has dtype torch.int64"),
        (1, lambda t: t[:3], r"weight has shape \[3, 4\].*channels = 6"),
        (1, lambda t: t.float(), r"weight has dtype torch.float32"),
        (2, lambda t: t[:, :2], r"tail has shape \[2, 2, 6\].*\[2, 3, 6\]"),
        (2, lambda t: t.float(), r"tail has dtype torch.float32"),
    ],
)
def test_wrong_inputs_are_named(index: int, change: object, message: str) -> None:
    inputs = [t.detach() for t in make_inputs()]
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        short_conv(*inputs)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="'relu' is not offered; choose silu or none"):
        short_conv(*make_inputs(), activation="relu")
