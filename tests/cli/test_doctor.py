"""`sleeptrain doctor`: the results of its checks, and that a failing check hides no other."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.cli import checks
from sleeptrain.cli.checks import Check, CheckResult, packages, run_check
from sleeptrain.cli.checks.kernels import check_kernels
from sleeptrain.cli.checks.leftovers import leftovers, mapped_files
from sleeptrain.cli.checks.packages import check_versions


def results_of(*results: CheckResult) -> Iterator[CheckResult]:
    yield from results


def raises_after_one_result() -> Iterator[CheckResult]:
    yield CheckResult("first", "ok", "fine")
    raise RuntimeError("broken\nin two lines")


def imports_a_missing_package() -> Iterator[CheckResult]:
    import no_such_package  # noqa: F401

    yield CheckResult("never", "ok", "")


GOOD = Check("good", lambda: results_of(CheckResult("good", "ok", "fine")), "")
OPTIONAL = Check(
    "optional", lambda: results_of(CheckResult("optional", "missing", "none", "get one", needed=False)), ""
)
BROKEN = Check("broken", raises_after_one_result, "repair it")
UNINSTALLED = Check("uninstalled", imports_a_missing_package, "install it", needed=False)


def test_all_needed_checks_pass_on_this_machine(sleeptrain: Any, examples: Any) -> None:
    for words in examples("doctor"):
        ran = sleeptrain(*words)
        assert ran.status == 0, ran.out
        assert ran.err == ""
    report = json.loads(ran.out)
    assert report["ok"] is True
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert {"python", "torch", "gloo", "kernels", "streaming", "disk", "leftovers"} <= set(status)
    assert all(check["advice"] for check in report["checks"] if check["status"] != "ok")


def test_a_failing_check_hides_no_other(sleeptrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", (BROKEN, UNINSTALLED, GOOD, OPTIONAL))
    ran = sleeptrain("doctor", "--json")
    assert ran.status == 1
    report = json.loads(ran.out)
    assert [(check["name"], check["status"]) for check in report["checks"]] == [
        ("first", "ok"), ("broken", "failed"), ("uninstalled", "missing"), ("good", "ok"), ("optional", "missing"),
    ]  # fmt: skip
    table = sleeptrain("doctor")
    assert table.status == 1
    for text in (
        "RuntimeError: broken",
        "repair it",
        "install it",
        "fine",
        "training on the CPU does not work here: broken",
    ):
        assert text in table.out
    assert "in two lines" not in table.out


def test_missing_optional_checks_do_not_change_the_exit_status(
    sleeptrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS", (GOOD, OPTIONAL, UNINSTALLED))
    assert sleeptrain("doctor").status == 0


def test_a_kernel_with_a_wrong_gradient_of_the_state_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import sleep_kernels

    correct = sleep_kernels.gated_delta_rule

    def wrong(q: Any, k: Any, v: Any, g: Any, beta: Any, initial_state: Any, *, backend: str) -> Any:
        if backend == "chunked":
            initial_state = initial_state + 0.01 * (initial_state - initial_state.detach())
        return correct(q, k, v, g, beta, initial_state, backend=backend)

    monkeypatch.setattr(sleep_kernels, "gated_delta_rule", wrong)
    (result,) = check_kernels()
    assert result.status == "failed" and "initial_state" in result.detail


def test_versions_that_differ_from_the_pinned_ones_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "wandb":
            raise packages.metadata.PackageNotFoundError(name)
        return {"torch": "2.13.0+cu130", "omegaconf": "9.9"}.get(name, installed(name))

    installed = packages.metadata.version
    monkeypatch.setattr(packages.metadata, "version", version)
    by_name = {result.name: result for result in check_versions()}
    assert by_name["torch"].status == "ok"
    assert by_name["omegaconf"].status == "failed" and by_name["omegaconf"].advice.startswith("pip install omegaconf==")
    assert by_name["wandb"].status == "missing" and not by_name["wandb"].needed


def test_leftovers_are_files_of_runs_that_no_process_uses(tmp_path: Path) -> None:
    names = [
        "000000_locals",
        "deepspeed_allreduce_buffer_root_1",
        "torch_12_345",
        "sem.mp-abc",
        "1469469415_shard_states",  # the number is drawn from 31 bits
        "mine.txt",
        "000001_barrier",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    used = {str(tmp_path / "000001_barrier")}
    assert [path.name for path in leftovers(tmp_path, used)] == sorted(names[:5])
    assert leftovers(tmp_path / "nowhere", set()) == []
    assert all(path.lstat().st_uid == os.getuid() for path in leftovers(tmp_path, set()))


def test_mapped_files_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"x" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert str(path) in mapped_files()
    assert str(path) not in mapped_files()


def test_results_before_an_exception_are_kept() -> None:
    assert [result.status for result in run_check(BROKEN)] == ["ok", "failed"]
