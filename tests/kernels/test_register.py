"""Registration of the operators: opcheck, and torch.compile without a graph break."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sleep_kernels import gated_delta_rule, gated_rms_norm, short_conv
from tests.kernels.delta_inputs_reference import make_inputs, mask, separate_inputs

OPS = torch.ops.sleep_kernels


def rule_inputs(time: int, state: bool) -> tuple[Any, ...]:
    torch.manual_seed(0)
    shapes = [(2, time, 2, 3), (2, time, 2, 3), (2, time, 4, 5), (2, time, 4), (2, time, 4), (2, 4, 3, 5)]
    q, k, v, g, beta, initial = (torch.rand(s) for s in shapes)
    leaves = [t.requires_grad_() for t in (q, k, v, -g.requires_grad_(False), beta, initial)]
    return *leaves[:5], leaves[5] if state else None, 0.5, True


@pytest.mark.parametrize(("time", "state"), [(1, True), (40, False), (40, True)])
def test_gated_delta_rule(time: int, state: bool) -> None:
    torch.library.opcheck(OPS.gated_delta_rule_chunked.default, rule_inputs(time, state))


def test_gated_delta_rule_backward() -> None:
    inputs = [t.detach() if isinstance(t, Tensor) else t for t in rule_inputs(7, True)]
    for grads in ((torch.rand(2, 7, 4, 5), torch.rand(2, 4, 3, 5)), (None, torch.rand(2, 4, 3, 5))):
        torch.library.opcheck(OPS.gated_delta_rule_chunked_backward.default, (*grads, *inputs))


@pytest.mark.parametrize("tail", [True, False])
def test_short_conv(tail: bool) -> None:
    torch.manual_seed(0)
    x, weight, carried = (torch.rand(s, requires_grad=True) for s in [(2, 5, 3), (3, 4), (2, 3, 3)])
    inputs = (x, weight, carried if tail else None, True)
    torch.library.opcheck(OPS.short_conv.default, inputs)
    plain = [t.detach() if isinstance(t, Tensor) else t for t in inputs]
    torch.library.opcheck(OPS.short_conv_backward.default, (torch.rand(2, 5, 3), torch.rand(2, 3, 3), *plain))


def test_gated_rms_norm() -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(s, requires_grad=True) for s in [(2, 5, 3), (2, 5, 3), (3,)]]
    torch.library.opcheck(OPS.gated_rms_norm.default, (*inputs, 1e-6, "auto"))
    plain = [t.detach() for t in inputs]
    torch.library.opcheck(OPS.gated_rms_norm_backward.default, (torch.rand(2, 5, 3), *plain, 1e-6, "auto"))


def layer(*inputs: Tensor) -> Any:
    """All operators of a layer with plain torch between them; the last two inputs are a state and the norm's weight."""
    q, k, v, g, beta, tail = separate_inputs(*inputs[:11], mask("scattered", 9), key_heads=2)
    v, _ = short_conv(v.flatten(2), inputs[7])
    o, state = gated_delta_rule(q, k, v.unflatten(2, (2, 16)), g, beta, inputs[11])
    return gated_rms_norm(o.sin(), o, inputs[12], 1e-6), state, tail


def layer_inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [t.requires_grad_() for t in [*make_inputs(9, key_heads=2), torch.rand(2, 2, 16, 16), torch.rand(16)]]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs = layer_inputs()
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        outputs = function(*inputs)
        grads = torch.autograd.grad(sum(t.square().sum() for t in outputs), inputs)
        results.append([*outputs, *grads])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_import_of_the_package_imports_torch_only() -> None:
    code = "import sys, sleep_kernels; print([m for m in ('triton', 'transformers', 'fla') if m in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", f"import torch; {code}"], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
