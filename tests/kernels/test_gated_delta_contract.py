"""Contract of the gated delta rule beyond its values: dtypes, saved tensors, reproducibility, autocast and errors."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sleep_kernels import gated_delta_rule
from tests.kernels import rule_inputs
from tests.kernels.rule_inputs import run

NAMES = ("o", "final_state", "q", "k", "v", "g", "beta", "initial_state")
make_inputs = partial(rule_inputs.make_inputs, batch=2, key_heads=2, d_k=8, d_v=8, dtype=torch.float64)


def test_second_derivative_is_refused() -> None:
    leaves = [t.requires_grad_() for t in make_inputs(time=3).values()]
    (grad,) = torch.autograd.grad(gated_delta_rule(*leaves)[0].sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Bound: 1.5 times the error of rounding the float64 result of the same rounded inputs to the dtype."""
    inputs = make_inputs(time=100, d_k=16, d_v=16)
    rounded = {n: t.to(torch.float32 if n in ("g", "initial_state") else dtype) for n, t in inputs.items()}
    expected = run({name: t.double() for name, t in rounded.items()}, "reference")
    leaves = {name: t.detach().clone().requires_grad_() for name, t in rounded.items()}
    o, final = gated_delta_rule(**leaves)
    assert o.dtype == dtype and final.dtype == torch.float32
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (o, final)]
    exact = run_with_weights({n: t.double() for n, t in rounded.items()}, [weights[0].to(dtype).double(), weights[1]])
    grads = torch.autograd.grad([o, final], list(leaves.values()), [weights[0].to(dtype), weights[1].float()])
    results = {"o": o, **dict(zip(leaves, grads, strict=True))}
    exact["o"] = expected["o"]
    for name, actual in results.items():
        if actual.dtype != dtype:
            continue
        rounding = (exact[name].to(dtype).double() - exact[name]).norm()
        assert (actual.double() - exact[name]).norm() <= 1.5 * rounding, name
    assert (final.double() - expected["final_state"]).norm() <= 1e-5 * expected["final_state"].norm()


def run_with_weights(inputs: dict[str, Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    outputs = gated_delta_rule(**leaves, backend="reference")
    return dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), weights), strict=True))


def test_backward_saves_only_the_inputs() -> None:
    inputs = make_inputs(time=256, d_k=16, d_v=16)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        gated_delta_rule(**{name: t.requires_grad_() for name, t in inputs.items()})
    assert 0 < sum(saved) <= 1.2 * sum(t.nbytes for t in inputs.values())


def test_gradients_are_bit_reproducible() -> None:
    inputs = {name: t.float() for name, t in make_inputs(time=70).items()}
    first, second = run(inputs, "chunked"), run(inputs, "chunked")
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_autocast_does_not_change_results() -> None:
    inputs = {name: t.float() for name, t in make_inputs(time=40).items()}
    expected = run(inputs, "chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(inputs, "chunked")
    assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda t: t[0], r"q has shape \[70, 2, 8\]"),
        ("q", lambda t: t[:, :0], r"q has shape \[2, 0, 2, 8\]"),
        ("k", lambda t: t[..., :3], r"k has shape \[2, 70, 2, 3\].*\[2, 70, 2, 8\]"),
        ("v", lambda t: t[:, :, :1], r"v has shape \[2, 70, 1, 8\].*multiple of 2 key heads"),
        ("g", lambda t: t[..., 0], r"g has shape \[2, 70\].*\[2, 70, 2\]"),
        ("beta", lambda t: t[:, :5], r"beta has shape \[2, 5, 2\]"),
        ("initial_state", lambda t: t[:1], r"initial_state has shape \[1, 2, 8, 8\].*\[2, 2, 8, 8\]"),
        ("initial_state", lambda t: t.float(), r"initial_state has dtype torch.float32.*torch.float64"),
        ("q", lambda t: t.long(), r"q has dtype torch.int64"),
        ("k", lambda t: t.float(), r"k has dtype torch.float32.*torch.float64"),
        ("g", lambda t: t.bfloat16(), r"g has dtype torch.bfloat16"),
    ],
)
def test_wrong_inputs_are_named(name: str, change: object, message: str) -> None:
    inputs = make_inputs()
    inputs[name] = change(inputs[name])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**inputs)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'cuda' is not offered; choose one of auto, chunked, reference"):
        gated_delta_rule(**make_inputs(), backend="cuda")
