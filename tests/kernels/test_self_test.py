"""The self-test: it passes correct kernels, fails wrong ones, and marks entries of the table."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sleep_kernels import assembler, comparison, dispatch, self_test, verdicts, verified
from sleep_kernels.comparison import ErrorReport, Shape
from sleep_kernels.self_test import self_test as run

SHAPE = Shape(4, 1029, 4, 8, 16, torch.float32)


def test_reduced_shapes_keep_what_determines_the_kernels() -> None:
    assert SHAPE.reduced() == Shape(2, 133, 4, 8, 16, torch.float32)
    assert Shape(1, 7, 1, 1, 64).reduced() == Shape(1, 7, 1, 1, 64)


def test_correct_kernels_pass() -> None:
    (result,) = run("cpu", [Shape(1, 70, 1, 2, 16, torch.float32)], backend="chunked")
    assert (
        result.ok
        and len(result.errors) == 2 * 8 + 3 * 20
        and str(result).startswith("ok: chunked, torch.float32, d=16, 2 value")
    )


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_gradient_fails(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = comparison.gated_delta_rule

    def wrong_rule(*inputs: Any, **options: Any) -> Any:
        inputs[3].register_hook(lambda grad: grad * wrong)  # of g
        return correct(*inputs, **options)

    monkeypatch.setattr(comparison, "gated_delta_rule", wrong_rule)
    (result,) = run("cpu", [Shape(1, 20, 1, 1, 16, torch.float32)], backend="chunked")
    assert not result.ok and "FAILED" in str(result) and "in gradient of g" in str(result)


def interpreted_case() -> str:
    (result,) = run("cpu", [Shape(1, 20, 1, 1, 16, torch.bfloat16)])
    return str(result)


def test_triton_passes_under_the_interpreter(interpreted: Any) -> None:
    assert interpreted(interpreted_case).startswith("ok: triton, torch.bfloat16, d=16")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file of verdicts, on a machine that looks like a GPU with entries; the package has none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "SHIPPED", tmp_path / "shipped.json")
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    monkeypatch.setattr(assembler, "in_use", lambda arch: ("/bin/ptxas", "13.0.88"))
    monkeypatch.setattr(self_test, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return verdicts.cached()


def test_a_folder_that_cannot_be_written_is_named(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table.parent.write_text("a file")
    monkeypatch.setattr(self_test, "_run_all", lambda names: iter([(names[0], True, "")]))
    monkeypatch.setattr("sys.argv", ["self_test", "--write"])
    assert self_test.main() == 1
    assert f"the verdicts cannot be kept in {table}: " in capsys.readouterr().out


def verified_entries() -> list[tuple[str, str, int]]:
    keys = [(e, verdicts.VerdictKey.of(e, "13.0.88")) for e in verified.table()]
    return [(e["triton"], e["dtype"], e["d"]) for e, key in keys if verdicts.verdict(key)]


@pytest.mark.parametrize("option", ["--write", "--ship"])
def test_verdicts_are_kept_for_the_user_or_in_the_package(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setattr(self_test, "_run_all", lambda names: iter([(names[1], True, ""), (names[2], False, "")]))
    monkeypatch.setattr("sys.argv", ["self_test", option])
    assert self_test.main() == 1 and "Triton 3.7.1, ptxas 13.0.88 (/bin/ptxas), sm_90\n" in capsys.readouterr().out
    assert verified_entries() == [("3.7.1", "bfloat16", 128)]
    assert table.exists() == (option == "--write") and verdicts.SHIPPED.exists() == (option == "--ship")


CHILDREN = {
    "bfloat16-64": "print('all passed')",
    "bfloat16-128": "import os; print('one passed', flush=True); os.abort()",
    "bfloat16-256": "raise RuntimeError('OutOfResources')",
    "float32-64": "import sys; print('FAILED'); sys.exit(1)",
    "float32-128": "print('all passed')",
}


def test_an_entry_whose_process_crashes_does_not_affect_others(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(self_test, "_command", lambda name: [sys.executable, "-c", CHILDREN[name]])
    monkeypatch.setattr("sys.argv", ["self_test", "--write"])
    assert self_test.main() == 1
    assert verified_entries() == [("3.7.1", "bfloat16", 64), ("3.7.1", "float32", 128)]
    out = capsys.readouterr().out
    assert "one passed\nended with status -6\nNOT OK: bfloat16-128\n" in out
    assert "RuntimeError: OutOfResources\nended with status 1\nNOT OK: bfloat16-256\n" in out
    assert "FAILED\nended with status 1\nNOT OK: float32-64\n" in out
    assert out.count("all passed\nok: ") == 2


def test_each_entry_is_marked_as_soon_as_it_passes(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that passed before an interrupt are marked in the table."""

    def interrupted(names: list[str]) -> Iterator[tuple[str, bool, str]]:
        yield names[1], True, ""
        raise KeyboardInterrupt

    monkeypatch.setattr(self_test, "_run_all", interrupted)
    monkeypatch.setattr("sys.argv", ["self_test", "--write"])
    with pytest.raises(KeyboardInterrupt):
        self_test.main()
    assert verified_entries() == [("3.7.1", "bfloat16", 128)]


def test_an_entry_that_hangs_is_stopped() -> None:
    code = "import threading; threading.Event().wait()"
    assert self_test._run_child([sys.executable, "-c", code], 0.1) == (False, "stopped after 0.1 s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_command_of_an_entry_runs_this_program() -> None:
    ok, output = self_test._run_child(self_test._command("bfloat16-128"), 300)
    assert not ok and output.startswith("no GPU here") and output.endswith("ended with status 2")


def test_one_entry_is_tested_in_this_process(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requested = []

    def verify(device: torch.device, entry: dict[str, Any]) -> Iterator[ErrorReport]:
        requested.append((entry["triton"], entry["dtype"], entry["d"]))
        for error in (0.0, 1.0 if entry["d"] == 64 else 0.0, 0.0):
            yield ErrorReport(SHAPE, "triton", {"o": error}, True, 0.0)

    monkeypatch.setattr(self_test, "verify", verify)
    status = {}
    for name in ("float32-128", "float32-64", "float32-7"):
        monkeypatch.setattr("sys.argv", ["self_test", "--only", name])
        status[name] = self_test.main()
    assert status == {"float32-128": 0, "float32-64": 1, "float32-7": 2}
    assert requested == [("3.7.1", "float32", 128), ("3.7.1", "float32", 64)] and verified_entries() == []
    assert "the table has no entry float32-7 for Triton 3.7.1 on sm_90" in capsys.readouterr().out


def test_without_a_gpu_the_message_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["self_test"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert self_test.main() == 2
    assert "no GPU here" in capsys.readouterr().out
