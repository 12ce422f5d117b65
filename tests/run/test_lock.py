"""The lock of a run folder, held by real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleeptrain.errors import TryAgain, UserError
from sleeptrain.run.lock import run_lock

HOLDS = """
import subprocess, sys
from pathlib import Path
from sleeptrain.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "600"]) if "child" in sys.argv else None
    print(child.pid if child else 0, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that holds the lock until its input is closed."""
    command = [sys.executable, "-c", HOLDS, str(folder), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_in_use_is_refused_with_the_name_of_its_user(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(UserError, match=rf"run is in use by process {other.pid} on .*; wait until it ends"):
            with run_lock(tmp_path / "run"):
                pytest.fail("both hold the lock")
        other.communicate("")
    with run_lock(tmp_path / "run"):
        pass


def test_a_killed_holder_frees_the_lock_though_its_children_live_on(tmp_path: Path) -> None:
    with holder(tmp_path, "child") as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        other.kill()
        other.wait()
    try:
        os.kill(child, 0)
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(child, 9)


def test_a_job_waits_for_its_predecessor_and_may_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with holder(tmp_path) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(TryAgain, match=r"is in use by process \d+ on .*; waited 1 s for it to end"):
            with run_lock(tmp_path, wait=1):
                pytest.fail("both hold the lock")

        def ends(_: float) -> None:
            other.communicate("")

        monkeypatch.setattr("sleeptrain.run.lock.time.sleep", ends)
        with run_lock(tmp_path):
            assert other.returncode == 0
    with holder(tmp_path) as next_one:
        assert next_one.stdout is not None and next_one.stdout.readline()
        next_one.communicate("")


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with holder(tmp_path) as other:
        assert other.stdout is not None and other.stdout.readline()
        other.communicate("")
