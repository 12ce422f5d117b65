"""The self-test itself: that it passes right kernels and fails wrong ones, and marks the table."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sleep_kernels import choice, comparison, self_test, verified
from sleep_kernels.comparison import Shape
from sleep_kernels.self_test import self_test as run

SHAPE = Shape(4, 1029, 4, 8, 16, torch.float32)


def test_shapes_are_cut_to_what_decides_the_code() -> None:
    assert SHAPE.reduced() == Shape(2, 133, 4, 8, 16, torch.float32)
    assert Shape(1, 7, 1, 1, 64).reduced() == Shape(1, 7, 1, 1, 64)


def test_right_kernels_pass() -> None:
    (result,) = run("cpu", [Shape(1, 70, 1, 2, 16, torch.float32)], backend="chunked")
    assert (
        result.ok
        and len(result.errors) == 2 * (8 + 20)
        and str(result).startswith("ok: chunked, torch.float32, d=16, 2 value")
    )


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_gradient_fails(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = comparison.gated_delta_rule

    def spoilt(*inputs: Any, **options: Any) -> Any:
        inputs[3].register_hook(lambda grad: grad * wrong)  # of g
        return right(*inputs, **options)

    monkeypatch.setattr(comparison, "gated_delta_rule", spoilt)
    (result,) = run("cpu", [Shape(1, 20, 1, 1, 16, torch.float32)], backend="chunked")
    assert not result.ok and "FAILED" in str(result) and "in gradient of g" in str(result)


def interpreted_case() -> str:
    (result,) = run("cpu", [Shape(1, 20, 1, 1, 16, torch.bfloat16)])
    return str(result)


def test_triton_passes_under_the_interpreter(interpreted: Any) -> None:
    assert interpreted(interpreted_case).startswith("ok: triton, torch.bfloat16, d=16")


def test_marks_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "verified.json"
    shutil.copy(verified.TABLE, table)
    monkeypatch.setattr(verified, "TABLE", table)
    monkeypatch.setattr(choice, "triton_version", lambda: "3.7.1")
    for ok in (True, False):
        self_test._mark([("bfloat16", 128, ok)], "sm_90")
        verified.table.cache_clear()
        marked = [(e["triton"], e["d"]) for e in verified.table() if e["verified_on_gpu"]]
        assert marked == ([("3.7.1", 128)] if ok else [])
    verified.table.cache_clear()
    assert table.read_text() == Path(__file__).parents[2].joinpath("kernels/sleep_kernels/verified.json").read_text()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["self_test"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert self_test.main() == 2
    assert "no GPU here" in capsys.readouterr().out
