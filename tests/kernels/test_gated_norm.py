"""Gated RMSNorm against its formula in plain torch."""

import pytest
import torch
from torch import Tensor

from sleep_kernels import gated_rms_norm

EPS = 1e-6


def make_inputs(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, shape, shape[-1:]]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def by_formula(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    norm = (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    return x / norm * weight * gate / (1 + torch.exp(-gate))


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (4, 1), (7,)])
def test_equals_the_formula(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape)
    expected, actual = by_formula(*inputs), gated_rms_norm(*inputs, EPS)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, inputs, weights) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_processed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(3, 5, 8)
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 300})
    y = gated_rms_norm(*inputs, EPS)
    torch.testing.assert_close(y, by_formula(*inputs), rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (y, by_formula(*inputs))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *t: gated_rms_norm(*t, EPS), make_inputs(2, 4))


@pytest.mark.parametrize(("x", "gate"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_returns_the_dtype_of_the_gate(x: torch.dtype, gate: torch.dtype) -> None:
    """Bound: 1.5 times the error of rounding the float64 result of the same rounded inputs to bfloat16."""
    wide = make_inputs(50, 16)
    inputs = [t.detach().to(d).requires_grad_() for t, d in zip(wide, (x, gate, torch.float32), strict=True)]
    exact = by_formula(*(t.detach().double() for t in inputs))
    y = gated_rms_norm(*inputs, EPS)
    assert y.dtype == gate
    assert (y.double() - exact).norm() <= 1.5 * (exact.to(gate).double() - exact).norm()
    grads = torch.autograd.grad(y.float().sum(), inputs)
    assert [t.dtype for t in grads] == [x, gate, torch.float32]


def test_backward_saves_only_the_inputs() -> None:
    inputs = make_inputs(64, 8)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        gated_rms_norm(*inputs, EPS)
    assert 0 < sum(saved) <= 1.2 * sum(t.nbytes for t in inputs)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[:0], r"x has shape \[0, 4\]"),
        (1, lambda t: t[:1], r"gate has shape \[1, 4\].*\[2, 4\]"),
        (2, lambda t: t[:3], r"weight has shape \[3\].*\[4\]"),
        (2, lambda t: t.long(), r"weight has dtype torch.int64"),
    ],
)
def test_wrong_inputs_are_named(index: int, change: object, message: str) -> None:
    inputs = [t.detach() for t in make_inputs(2, 4)]
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        gated_rms_norm(*inputs, EPS)
