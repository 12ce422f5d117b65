"""delta_inputs in plain torch against its reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sleep_kernels import delta_inputs
from sleep_kernels.delta_inputs import packing
from tests.kernels.delta_inputs_reference import (
    ARGUMENTS,
    MASKS,
    differences,
    make_inputs,
    mask,
    run,
    separate_inputs,
    side_by_side,
    starts_of,
)

CASES = {
    "plain": ({"time": 9}, None, 1.0),
    "no tail, two key heads of two": ({"time": 9, "group": 2, "tail": False, "key_heads": 2}, None, 1.0),
    "one token": ({"time": 1}, None, 1.0),
    "shorter than the kernel": ({"time": 2, "key_heads": 2}, None, 2.0),
    "kernel of one": ({"time": 5, "kernel": 1}, None, 1.0),
    "kernel of two, scattered padding": ({"time": 7, "kernel": 2, "group": 3}, "scattered", 1.0),
    "kernel of one, scattered padding": ({"time": 7, "kernel": 1}, "scattered", 1.0),
    "padding on the right": ({"time": 9, "group": 2, "key_heads": 2}, "right", 1.0),
    "scattered padding, no tail": ({"time": 20, "tail": False}, "scattered", 2.0),
    "only padding": ({"time": 4, "key_heads": 2}, "all", 1.0),
}
DOCUMENTS = {
    "one document": ({"time": 9, "group": 2, "key_heads": 2}, None, "one row"),
    "documents of one token and more": ({"time": 11}, None, "many"),
    "no tail": ({"time": 11, "tail": False}, None, "many"),
    "shorter than the kernel": ({"time": 3}, None, "one row"),
    "kernel of one": ({"time": 9, "kernel": 1}, None, "many"),
    "kernel of two, scattered padding": ({"time": 20, "kernel": 2}, "scattered", "many"),
    "scattered padding": ({"time": 20, "group": 2}, "scattered", "many"),
    "padding on the right": ({"time": 9}, "right", "many"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temporary_bytes", [1 << 20, 1000])
def test_equals_the_reference(case: str, temporary_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": temporary_bytes})
    sizes, padding, strength = CASES[case]
    inputs = [None if t is None else t.double() for t in make_inputs(**sizes)]
    valid = mask(padding, sizes["time"])
    for name, difference in differences("auto", inputs, valid, None, sizes.get("key_heads", 1), strength):
        assert difference < 1e-12, f"{name}: {difference}"


@pytest.mark.parametrize("case", DOCUMENTS)
@pytest.mark.parametrize("temporary_bytes", [1 << 20, 1000])
def test_documents_equal_the_reference(case: str, temporary_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": temporary_bytes})
    sizes, padding, starts = DOCUMENTS[case]
    inputs = [None if t is None else t.double() for t in make_inputs(**sizes)]
    valid = mask(padding, sizes["time"])
    first = starts_of(starts, sizes["time"], valid)
    assert first is not None and bool(first.any())
    for name, difference in differences("auto", inputs, valid, first, sizes.get("key_heads", 1), 1.0):
        assert difference < 1e-12, f"{name}: {difference}"


def test_gradients_by_finite_differences() -> None:
    inputs = [t.double().requires_grad_() for t in make_inputs(3, d=2, kernel=2)]
    valid = mask("scattered", 3)
    assert torch.autograd.gradcheck(lambda *t: separate_inputs(*t, valid, key_heads=1, strength=2.0), inputs)


@pytest.mark.parametrize("padding", MASKS)
def test_padded_rows_are_never_read(padding: str) -> None:
    inputs, valid = make_inputs(9), mask(padding, 9)
    assert valid is not None
    poisoned = [t.masked_fill(~valid[..., None], float("nan")) if i < 5 else t for i, t in enumerate(inputs)]

    def ours(leaves: list[Any]) -> tuple[Tensor, ...]:
        return separate_inputs(*leaves, valid, key_heads=1)

    for clean, other in zip(run(ours, inputs), run(ours, poisoned), strict=True):
        assert torch.equal(clean, other)


def test_mask_of_real_tokens_only_equals_no_mask() -> None:
    inputs = make_inputs(9)
    for a, b in zip(
        separate_inputs(*inputs, key_heads=1), separate_inputs(*inputs, torch.ones(2, 9) > 0, key_heads=1), strict=True
    ):
        assert torch.equal(a, b)


def test_windows_chained_by_the_tail_equal_one_window() -> None:
    inputs, valid = make_inputs(11, group=2), mask("scattered", 11)
    assert valid is not None
    whole = separate_inputs(*inputs, valid, key_heads=1)
    tail, parts = inputs[10], []
    for cut in (slice(0, 2), slice(2, 3), slice(3, 11)):
        *part, tail = separate_inputs(*[t[:, cut] for t in inputs[:5]], *inputs[5:10], tail, valid[:, cut], key_heads=1)
        parts.append(part)
    for wanted, got in zip(whole, [*map(torch.cat, zip(*parts, strict=True), [1] * 5), tail], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_bfloat16_rounds_once() -> None:
    """Bound: 1.5 times the error of rounding the float64 result of the same rounded inputs to bfloat16."""
    narrow = [t.bfloat16() if i < 8 or i == 10 else t for i, t in enumerate(make_inputs(40, group=2))]

    def ours(leaves: list[Any]) -> tuple[Tensor, ...]:
        return separate_inputs(*leaves, key_heads=1)

    expected = run(ours, [t.double() for t in narrow])
    for name, got, wanted in zip(ARGUMENTS, run(ours, narrow)[6:], expected[6:], strict=True):
        if got.dtype == torch.bfloat16:
            rounding = (wanted.bfloat16().double() - wanted).norm()
            assert (got.double() - wanted).norm() <= 1.5 * rounding, name


def test_backward_saves_only_the_inputs() -> None:
    inputs = [t.requires_grad_() for t in make_inputs(64)]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        separate_inputs(*inputs, key_heads=1)
    assert sum(saved) == sum(t.nbytes for t in inputs)


@pytest.mark.parametrize("padding", [None, "scattered"])
def test_registration(padding: str | None) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(5, d=4)]
    valid = mask(padding, 5)
    order = None if valid is None else packing(valid, 3)
    torch.library.opcheck(
        torch.ops.sleep_kernels.delta_inputs.default, (*side_by_side(inputs), order, None, 1, 1.0, "chunked")
    )


def test_packing_moves_padding_to_the_front() -> None:
    # One token of the tail, then real, padded, real: positions 0, 1, 2, 3 of cat(tail, x).
    valid = torch.tensor([[True, False, True], [False, False, False]])
    assert packing(valid, 1).tolist() == [[-3, 0, 1, 3], [-2, -3, -4, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cuda"}, "'cuda' is not offered; choose one of auto, chunked, triton"),
        ({"key_heads": 3}, r"ba has shape \[2, 5, 2\]; it must be \[batch, time, 2 \* a multiple of 3 key heads\]"),
        ({"ba": torch.zeros(2, 5)}, r"ba has shape \[2, 5\]"),
        (
            {"ba": torch.zeros(2, 5, 3)},
            r"ba has shape \[2, 5, 3\]; it must be \[batch, time, 2 \* a multiple of 1 key heads\]",
        ),
        ({"ba": torch.zeros(2, 4, 2)}, r"ba has shape \[2, 4, 2\]; it must be \[2, 5, 2\]"),
        (
            {"qkv": torch.zeros(2, 5, 49)},
            r"qkv has shape \[2, 5, 49\]; it must be \[batch, time, d \* \(2 \* 1 key heads \+ 1 value heads\)\]",
        ),
        ({"qkv": torch.zeros(2, 0, 48)}, r"qkv has shape \[2, 0, 48\]"),
        ({"qkv": torch.zeros(2, 5, 48).long()}, "qkv has dtype torch.int64; it must be a floating-point tensor"),
        (
            {"ba": torch.zeros(2, 5, 2).double()},
            "ba has dtype torch.float64; with qkv in torch.float32 it must be torch.float32",
        ),
        (
            {"tail": torch.zeros(2, 3, 1, 48).double()},
            "tail has dtype torch.float64; it must be that of qkv, torch.float32",
        ),
        ({"conv_v": torch.zeros(16, 3)}, r"conv_v has shape \[16, 3\]; it must be \[16, 4\]"),
        ({"tail": torch.zeros(2, 3, 48)}, r"tail has shape \[2, 3, 48\]; it must be \[2, 3, 1, 48\]"),
        ({"valid": torch.ones(2, 5)}, "valid has dtype torch.float32; it must be bool"),
        ({"valid": torch.ones(2, 4) > 0}, r"valid has shape \[2, 4\]; it must be \[2, 5\]"),
        ({"backend": "triton"}, "backend 'triton' has no kernel for torch.float32, d = 16 on cpu"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    inputs = dict(zip(("qkv", "ba", *ARGUMENTS[5:]), side_by_side(make_inputs(5)), strict=True))
    with pytest.raises(ValueError, match=message):
        delta_inputs(**{**inputs, "key_heads": 1, **change})
