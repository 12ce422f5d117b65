"""Triton kernels of delta_inputs and gated_rms_norm in Triton's interpreter against plain torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sleep_kernels import gated_rms_norm
from sleep_kernels.delta_inputs import packing
from tests.kernels.delta_inputs_reference import (
    differences,
    make_inputs,
    mask,
    run,
    separate_inputs,
    side_by_side,
    starts_of,
)

Interpreted = Callable[..., Any]
# Lengths around the convolution's four taps and around the 64 tokens of a backward program.
CASES = {
    "one token": ({"time": 1}, None, 1.0),
    "no tail, two key heads of two": ({"time": 2, "group": 2, "tail": False, "key_heads": 2}, None, 2.0),
    "32 tokens": ({"time": 32, "tail": False}, None, 1.0),
    "66 tokens": ({"time": 66}, None, 1.0),
    "kernel of one": ({"time": 5, "kernel": 1}, None, 1.0),
    "kernel of three, scattered padding": ({"time": 7, "kernel": 3, "group": 2}, "scattered", 1.0),
    "padding on the right": ({"time": 9, "key_heads": 2}, "right", 1.0),
    "scattered padding, no tail, across programs": ({"time": 66, "tail": False}, "scattered", 2.0),
    "only padding": ({"time": 4}, "all", 1.0),
}
# (sizes, padding, first tokens of documents)
DOCUMENTS = {
    "across programs": ({"time": 66, "group": 2}, None, "many"),
    "shorter than the kernel, no tail": ({"time": 3, "tail": False}, None, "one row"),
    "kernel of one": ({"time": 9, "kernel": 1}, None, "many"),
    "scattered padding": ({"time": 20, "key_heads": 2}, "scattered", "many"),
}


def delta_inputs_case(name: str) -> list[tuple[str, float]]:
    sizes, padding, strength = CASES[name]
    inputs, valid = make_inputs(**sizes), mask(padding, sizes["time"])
    if valid is not None:  # padded rows are never read
        inputs[:5] = [t.masked_fill(~valid[..., None], float("nan")) for t in inputs[:5]]
    return differences("triton", inputs, valid, None, sizes.get("key_heads", 1), strength)


def documents_case(name: str) -> list[tuple[str, float]]:
    sizes, padding, starts = DOCUMENTS[name]
    inputs, valid = make_inputs(**sizes), mask(padding, sizes["time"])
    if valid is not None:
        inputs[:5] = [t.masked_fill(~valid[..., None], float("nan")) for t in inputs[:5]]
    first = starts_of(starts, sizes["time"], valid)
    return differences("triton", inputs, valid, first, sizes.get("key_heads", 1), 1.0)


@pytest.mark.parametrize("name", CASES)
def test_delta_inputs(interpreted: Interpreted, name: str) -> None:
    for tensor, difference in interpreted(delta_inputs_case, name):
        assert difference < 5e-6, f"{tensor}: {difference}"  # NaN fails too


@pytest.mark.parametrize("name", DOCUMENTS)
def test_delta_inputs_of_documents(interpreted: Interpreted, name: str) -> None:
    for tensor, difference in interpreted(documents_case, name):
        assert difference < 5e-6, f"{tensor}: {difference}"


def opcheck_case() -> None:
    inputs = [t.requires_grad_() for t in make_inputs(3)]
    order = packing(mask("scattered", 3), 3)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.use_deterministic_algorithms(False)  # else opcheck compares uninitialised memory
    operator = torch.ops.sleep_kernels.delta_inputs.default
    torch.library.opcheck(operator, (*side_by_side(inputs), order, None, 1, 2.0, "triton"), test_utils=utilities)
    torch.use_deterministic_algorithms(True)


def test_registration(interpreted: Interpreted) -> None:
    interpreted(opcheck_case)


def norm_case(rows: int) -> list[float]:
    torch.manual_seed(0)
    inputs = [torch.randn(rows, 32), torch.randn(rows, 32), torch.randn(32)]
    expected = run(lambda t: (gated_rms_norm(*t, 1e-6),), [t.double() for t in inputs])
    actual = run(lambda t: (gated_rms_norm(*t, 1e-6, backend="triton"),), inputs)
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("rows", [1, 35])
def test_gated_rms_norm(interpreted: Interpreted, rows: int) -> None:
    assert max(interpreted(norm_case, rows)) < 2e-6


def reproducible_case() -> bool:
    inputs, valid = make_inputs(9, group=2), mask("scattered", 9)
    results = [
        run(lambda leaves: separate_inputs(*leaves, valid, key_heads=1, backend="triton"), inputs) for _ in range(2)
    ]
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bit_reproducible(interpreted: Interpreted) -> None:
    assert interpreted(reproducible_case)
