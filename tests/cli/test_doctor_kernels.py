"""`sleeptrain doctor`: the check of fused kernels, with a GPU simulated by monkeypatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleep_kernels import dispatch, self_test, verified
from sleep_kernels.comparison import ErrorReport, Shape
from sleeptrain.cli.checks.kernels import check_kernels


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")


def with_errors(monkeypatch: pytest.MonkeyPatch, error: float, on_gpu: bool) -> list[Any]:
    """The results for fused kernels if every kernel has this error and the table's entries are verified or not."""
    table = tuple(entry | {"verified_on_gpu": on_gpu} for entry in verified.table())
    monkeypatch.setattr(verified, "table", lambda: table)

    def compare(device: torch.device, shapes: list[Shape]) -> list[ErrorReport]:
        assert device == torch.device("cuda", 0)
        return [ErrorReport(shape, "triton", {"gradient of g": error}, True, 0.1) for shape in shapes]

    monkeypatch.setattr(self_test, "self_test", compare)
    plain, *fused = check_kernels()
    assert plain.name == "kernels" and plain.status == "ok"
    assert [line.name for line in fused] == [
        f"fused kernels, {dtype}, d {d}" for dtype, d in
        [("bfloat16", 64), ("bfloat16", 128), ("bfloat16", 256), ("float32", 64), ("float32", 128)]
    ]  # fmt: skip
    assert not any(line.needed for line in fused)
    return fused


def test_correct_and_verified_kernels_are_ok(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 1e-5, True):
        assert line.status == "ok" and "largest error 1.0e-05 in gradient of g" in line.detail and not line.advice


def test_correct_kernels_that_are_not_verified_are_missing(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 1e-5, False):
        assert line.status == "missing" and "not used until verified" in line.detail
        assert line.advice == "python -m sleep_kernels.self_test --write"


def test_wrong_kernels_fail(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 0.5, True):
        assert line.status == "failed" and "in gradient of g" in line.detail and "train.kernels=chunked" in line.advice


def test_a_gpu_without_an_entry_is_missing(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    _, line = check_kernels()
    assert line.status == "missing" and "sm_86" in line.detail and not line.needed
