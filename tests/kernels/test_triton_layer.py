"""Triton kernels around the gated delta rule, under Triton's interpreter, against plain torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import delta_inputs, gated_rms_norm, verified

Interpreted = Callable[..., Any]
NAMES = ("q", "k", "v", "g", "beta", "new_tail", "x", "a", "b", "weight", "a_log", "dt_bias", "tail")


def layer_inputs(time: int, group: int, tail: bool, key_heads: int = 1, d: int = 16, kernel: int = 4) -> list[Any]:
    torch.manual_seed(time)
    channels, heads = key_heads * (2 + group) * d, key_heads * group
    shapes = [(2, time, channels), (2, time, heads), (2, time, heads), (channels, kernel), (heads,), (heads,)]
    inputs: list[Any] = [torch.randn(shape) for shape in shapes]
    return [*inputs, torch.randn(2, kernel - 1, channels) if tail else None]


def by_formula(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, a_log: Tensor, dt_bias: Tensor, tail: Any, key_heads: int
) -> Any:
    """With torch's own convolution."""
    channels, kernel = weight.shape
    before = x.new_zeros(x.shape[0], kernel - 1, channels) if tail is None else tail
    padded = torch.cat([before, x], 1)
    y = F.silu(F.conv1d(padded.mT, weight[:, None], groups=channels)).mT.unflatten(-1, (key_heads, -1))
    q, k = y[..., :16], y[..., 16:32]
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    v = y[..., 32:].flatten(2).unflatten(-1, (-1, 16))
    g = -a_log.exp() * F.softplus(a + dt_bias)
    return q, k, v, g, b.sigmoid(), padded[:, x.shape[1] :]


def outputs_and_gradients(function: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in results]
    return [*results, *torch.autograd.grad(results, [t for t in leaves if t is not None], weights)]


def prep_case(time: int, group: int, tail: bool, key_heads: int, backend: str = "triton") -> list[tuple[str, float]]:
    inputs = layer_inputs(time, group, tail, key_heads)
    actual = outputs_and_gradients(lambda *t: delta_inputs(*t, key_heads=key_heads, backend=backend), inputs)
    wide = [None if t is None else t.double() for t in inputs]
    expected = outputs_and_gradients(lambda *t: by_formula(*t, key_heads), wide)
    pairs = zip(NAMES, actual, expected, strict=False)
    return [(n, ((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item()) for n, a, b in pairs]


# Lengths around the kernel's four taps and around a backward program's 64.
@pytest.mark.parametrize(
    ("time", "group", "tail", "key_heads"), [(1, 1, True, 1), (2, 2, False, 2), (16, 1, False, 1), (66, 1, True, 1)]
)
def test_delta_inputs(interpreted: Interpreted, time: int, group: int, tail: bool, key_heads: int) -> None:
    for name, difference in interpreted(prep_case, time, group, tail, key_heads):
        assert difference < 5e-6, f"{name}: {difference}"


@pytest.mark.parametrize(("group", "tail"), [(1, True), (2, False)])
def test_delta_inputs_in_plain_torch(group: int, tail: bool) -> None:
    for name, difference in prep_case(9, group, tail, 2, "auto"):
        assert difference < 5e-6, f"{name}: {difference}"


def opcheck_case() -> None:
    inputs = [None if t is None else t.requires_grad_() for t in layer_inputs(3, 1, True)]
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.use_deterministic_algorithms(False)  # or opcheck compares uninitialised memory
    torch.library.opcheck(torch.ops.sleep_kernels.delta_inputs.default, (*inputs, 1), test_utils=utilities)
    torch.use_deterministic_algorithms(True)


def test_registration(interpreted: Interpreted) -> None:
    interpreted(opcheck_case)


def norm_case(rows: int) -> list[float]:
    from sleep_kernels import triton_norm

    launch = verified.interpreted().norm
    torch.manual_seed(0)
    inputs = [torch.randn(rows, 32), torch.randn(rows, 32), torch.randn(32)]
    expected = outputs_and_gradients(lambda *t: gated_rms_norm(*t, 1e-6), [t.double() for t in inputs])
    grad = torch.randn(rows, 32, generator=torch.Generator().manual_seed(1))
    actual = [triton_norm.forward(*inputs, 1e-6, launch), *triton_norm.backward(grad, *inputs, 1e-6, launch)]
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("rows", [1, 35])
def test_gated_rms_norm(interpreted: Interpreted, rows: int) -> None:
    assert max(interpreted(norm_case, rows)) < 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cuda"}, "'cuda' is not offered"),
        ({"key_heads": 3}, r"x has shape \[2, 5, 48\] and a \[2, 5, 1\]"),
        ({"b": torch.zeros(2, 5, 2)}, r"b has shape \[2, 5, 2\]; it must be \[2, 5, 1\]"),
        ({"x": torch.zeros(2, 5, 49)}, "x has 49 channels"),
        ({"backend": "triton"}, "has no kernel"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    inputs = dict(zip(("x", "a", "b", "weight", "a_log", "dt_bias", "tail"), layer_inputs(5, 1, True), strict=True))
    with pytest.raises(ValueError, match=message):
        delta_inputs(**{**inputs, "key_heads": 1, **change})
