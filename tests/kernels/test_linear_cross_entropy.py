"""The fused last layer and loss against the two in a row."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import linear_cross_entropy

module = importlib.import_module("sleep_kernels.linear_cross_entropy")


def make_inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, 11, (3, 5))
    targets[0, :2] = -100
    return [
        torch.randn(3, 5, 8, dtype=dtype).requires_grad_(),
        torch.randn(11, 8, dtype=dtype).requires_grad_(),
        targets,
    ]


def by_formula(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((x @ weight.t()).flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("room", [1 << 20, 200])
def test_equals_the_two_in_a_row(room: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": room})
    monkeypatch.setattr(module, "_LEAST", 1)
    inputs = make_inputs(dtype)
    expected, actual = by_formula(*inputs), linear_cross_entropy(*inputs)
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)
    weights = torch.rand_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, inputs[:2], weights) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


def test_slices_are_long_enough_for_a_large_vocabulary() -> None:
    x, weight = torch.zeros(2, 500, 1), torch.zeros(1 << 20, 1)
    lengths = [part.stop - part.start for part in module._slices(x, weight)]
    assert sum(lengths) == 1000 and min(lengths) >= 104 and max(lengths) <= 128


def test_bfloat16() -> None:
    """Bound: 1.5 times the error of the plain way, whose logits are bfloat16 as ours are."""
    inputs = make_inputs(torch.bfloat16)
    exact = by_formula(*(t.detach().double() for t in inputs[:2]), inputs[2])
    loss = linear_cross_entropy(*inputs)
    plain = F.cross_entropy((inputs[0] @ inputs[1].t()).float().flatten(0, 1), inputs[2].flatten(), reduction="none")
    assert loss.dtype == torch.float32
    assert (loss - exact).norm() <= 1.5 * (plain.view(exact.shape) - exact).norm()
    wide = [t.detach().double().requires_grad_() for t in inputs[:2]]
    wanted = torch.autograd.grad(by_formula(*wide, inputs[2]).sum(), wide)
    ours, theirs = (torch.autograd.grad(y.sum(), inputs[:2]) for y in (loss, plain))
    for got, other, right in zip(ours, theirs, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - right).norm() <= 1.5 * (other - right).norm()


def test_keeps_no_logits() -> None:
    kept: list[int] = []
    inputs = make_inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        linear_cross_entropy(*inputs)
    assert sum(kept) == sum(t.nbytes for t in inputs) + inputs[2].numel() * 8


def test_registration() -> None:
    torch.library.opcheck(torch.ops.sleep_kernels.linear_cross_entropy.default, (*make_inputs(), -100))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t.long(), "x is torch.int64"),
        (1, lambda t: t[:, :3], r"weight is torch.float64 \[11, 3\]"),
        (1, lambda t: t.float(), "weight is torch.float32"),
        (2, lambda t: t[:2], r"targets is torch.int64 \[2, 5\]"),
    ],
)
def test_wrong_inputs_are_named(index: int, change: object, message: str) -> None:
    inputs = make_inputs()
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*inputs)
