"""`sleeptrain doctor`: the check of fused kernels, with a GPU simulated by monkeypatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleep_kernels import assembler, dispatch, self_test, verdicts
from sleep_kernels.comparison import ErrorReport, Shape
from sleeptrain.cli.checks.kernels import check_kernels


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    monkeypatch.setattr(assembler, "in_use", lambda arch: ("/own/ptxas", "12.8.93"))
    monkeypatch.setattr(assembler, "packaged", lambda: None)
    monkeypatch.delenv(assembler.VARIABLE, raising=False)


def with_errors(monkeypatch: pytest.MonkeyPatch, error: float, on_gpu: bool) -> list[Any]:
    """The results for fused kernels if every kernel has this error and the table's entries are verified or not."""
    monkeypatch.setattr(verdicts, "verdict", lambda key: True if on_gpu else None)

    def compare(device: torch.device, shapes: list[Shape]) -> list[ErrorReport]:
        assert device == torch.device("cuda", 0)
        return [ErrorReport(shape, "triton", {"gradient of g": error}, True, 0.1) for shape in shapes]

    monkeypatch.setattr(self_test, "self_test", compare)
    plain, ptxas, *fused = check_kernels()
    assert plain.name == "kernels" and plain.status == "ok"
    assert ptxas.name == "assembler" and ptxas.status == ("ok" if on_gpu else "missing") and not ptxas.needed
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
    _, _, line = check_kernels()
    assert line.status == "missing" and "sm_86" in line.detail and not line.needed


@pytest.mark.parametrize(
    ("path", "named", "version", "whose", "advice"),
    [
        ("/own/ptxas", "", "12.8.93", "Triton's own", "install ptxas 13.0.88 with `pip install 'sleeptrain[gpu]'`, then python -m"),
        (
            "/own/ptxas", "/no/ptxas", "12.8.93", "Triton's own, since TRITON_PTXAS_PATH = /no/ptxas is no ptxas",
            "install ptxas 13.0.88 with `pip install 'sleeptrain[gpu]'`, and unset TRITON_PTXAS_PATH, then",
        ),
        ("/user/ptxas", "/user/ptxas", "12.9.86", "set by TRITON_PTXAS_PATH", "unset TRITON_PTXAS_PATH to use ptxas 13.0.88, which is installed, then"),
        ("/extra/ptxas", "/extra/ptxas", "13.0.88", "of the extra gpu", "python -m sleep_kernels.self_test --write"),
    ],
)  # fmt: skip
def test_the_assembler_and_the_way_out_are_named(
    hopper: None, monkeypatch: pytest.MonkeyPatch, path: str, named: str, version: str, whose: str, advice: str
) -> None:
    monkeypatch.setattr(assembler, "in_use", lambda arch: (path, version))
    monkeypatch.setattr(assembler, "packaged", lambda: None if path == "/own/ptxas" else "/extra/ptxas")
    if named:
        monkeypatch.setenv(assembler.VARIABLE, named)
    monkeypatch.setattr(verdicts, "verdict", lambda key: None)
    monkeypatch.setattr(
        self_test, "self_test", lambda device, shapes: [ErrorReport(shapes[0], "triton", {"o": 0.0}, True, 0.1)]
    )
    line = list(check_kernels())[1]
    assert line.detail == f"ptxas {version}, {whose}: {path}; verified for 0 of 5 entries of the kernel table"
    assert line.status == "missing" and line.advice.startswith(advice)
