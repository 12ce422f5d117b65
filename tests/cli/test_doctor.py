"""`sleeptrain doctor`: what it finds, and that one failing check hides no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.cli import checks
from sleeptrain.cli.checks import Check, examine, leftovers


def finds(*results: Check) -> Iterator[Check]:
    yield from results


def breaks() -> Iterator[Check]:
    yield Check("first", "ok", "fine")
    raise RuntimeError("broken\nin two lines")


def lacks() -> Iterator[Check]:
    import no_such_package  # noqa: F401

    yield Check("never", "ok", "")


GOOD = Check("good", lambda: finds(Check("good", "ok", "fine")), "")
SPARE = Check("spare", lambda: finds(Check("spare", "missing", "none", "get one", needed=False)), "")
BROKEN = Check("broken", breaks, "mend it")
LACKING = Check("lacking", lacks, "install it", needed=False)


def test_this_machine_can_train(sleeptrain: Any, examples: Any) -> None:
    for words in examples("doctor"):
        ran = sleeptrain(*words)
        assert ran.status == 0, ran.out
        assert ran.err == ""
    found = json.loads(ran.out)
    assert found["ok"] is True
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert {"python", "torch", "gloo", "kernels", "streaming", "disk", "leftovers"} <= set(status)
    assert all(check["advice"] for check in found["checks"] if check["status"] != "ok")


def test_a_failing_check_hides_no_other(sleeptrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", (BROKEN, LACKING, GOOD, SPARE))
    ran = sleeptrain("doctor", "--json")
    assert ran.status == 1
    found = json.loads(ran.out)
    assert [(check["name"], check["status"]) for check in found["checks"]] == [
        ("first", "ok"), ("broken", "failed"), ("lacking", "missing"), ("good", "ok"), ("spare", "missing"),
    ]  # fmt: skip
    table = sleeptrain("doctor")
    assert table.status == 1
    for text in (
        "RuntimeError: broken",
        "mend it",
        "install it",
        "fine",
        "training on the CPU does not work here: broken",
    ):
        assert text in table.out
    assert "in two lines" not in table.out


def test_what_is_not_needed_does_not_count(sleeptrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", (GOOD, SPARE, LACKING))
    assert sleeptrain("doctor").status == 0


def test_a_kernel_that_loses_the_gradient_of_the_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import sleep_kernels

    right = sleep_kernels.gated_delta_rule

    def wrong(q: Any, k: Any, v: Any, g: Any, beta: Any, initial_state: Any, *, backend: str) -> Any:
        if backend == "chunked":
            initial_state = initial_state + 0.01 * (initial_state - initial_state.detach())
        return right(q, k, v, g, beta, initial_state, backend=backend)

    monkeypatch.setattr(sleep_kernels, "gated_delta_rule", wrong)
    (result,) = checks.check_kernels()
    assert result.status == "failed" and "initial_state" in result.detail


def test_versions_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "wandb":
            raise checks.metadata.PackageNotFoundError(name)
        return {"torch": "2.13.0+cu130", "omegaconf": "9.9"}.get(name, real(name))

    real = checks.metadata.version
    monkeypatch.setattr(checks.metadata, "version", version)
    found = {result.name: result for result in checks.check_versions()}
    assert found["torch"].status == "ok"
    assert found["omegaconf"].status == "failed" and found["omegaconf"].advice.startswith("pip install omegaconf==")
    assert found["wandb"].status == "missing" and not found["wandb"].needed


def test_leftovers_are_files_of_runs_that_nobody_uses(tmp_path: Path) -> None:
    names = [
        "000000_locals",
        "deepspeed_allreduce_buffer_root_1",
        "torch_12_345",
        "sem.mp-abc",
        "mine.txt",
        "000001_barrier",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    used = {str(tmp_path / "000001_barrier")}
    assert [path.name for path in leftovers(tmp_path, used)] == sorted(names[:4])
    assert leftovers(tmp_path / "nowhere", set()) == []
    assert all(path.lstat().st_uid == os.getuid() for path in leftovers(tmp_path, set()))


def test_mapped_files_are_seen(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "a file"
    path.write_bytes(b"x" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert str(path) in checks._mapped()
    assert str(path) not in checks._mapped()


def test_examine_keeps_what_came_before_the_failure() -> None:
    assert [result.status for result in examine(BROKEN)] == ["ok", "failed"]
