"""What `sleeptrain doctor` says about fused kernels, on a GPU as far as it can see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleep_kernels import dispatch, self_test, verified
from sleep_kernels.comparison import ErrorReport, Shape
from sleeptrain.cli import checks


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")


def with_errors(monkeypatch: pytest.MonkeyPatch, error: float, on_gpu: bool) -> list[Any]:
    """The fused lines, where every kernel has this error and the table's entries are verified or not."""
    table = tuple(entry | {"verified_on_gpu": on_gpu} for entry in verified.table())
    monkeypatch.setattr(verified, "table", lambda: table)

    def compare(device: torch.device, shapes: list[Shape]) -> list[ErrorReport]:
        assert device == torch.device("cuda", 0)
        return [ErrorReport(shape, "triton", {"gradient of g": error}, True, 0.1) for shape in shapes]

    monkeypatch.setattr(self_test, "self_test", compare)
    plain, *fused = checks.check_kernels()
    assert plain.name == "kernels" and plain.status == "ok"
    assert [line.name for line in fused] == [
        f"fused kernels, {dtype}, d {d}" for dtype, d in
        [("bfloat16", 64), ("bfloat16", 128), ("bfloat16", 256), ("float32", 64), ("float32", 128)]
    ]  # fmt: skip
    assert not any(line.needed for line in fused)
    return fused


def test_right_and_verified(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 1e-5, True):
        assert line.status == "ok" and "largest error 1.0e-05 in gradient of g" in line.detail and not line.advice


def test_right_but_not_verified(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 1e-5, False):
        assert line.status == "missing" and "not used before" in line.detail
        assert line.advice == "python -m sleep_kernels.self_test --write"


def test_wrong(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in with_errors(monkeypatch, 0.5, True):
        assert line.status == "failed" and "in gradient of g" in line.detail and "train.kernels=chunked" in line.advice


def test_an_unknown_gpu(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    _, line = checks.check_kernels()
    assert line.status == "missing" and "sm_86" in line.detail and not line.needed
