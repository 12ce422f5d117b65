"""`sleeptrain job cancel` of an array; squeue and scancel are programs of the test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sleep_launch.submit import LAUNCH, RECORD


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study of four runs, whose array is job 7: run 0 is done, 1 trains, 2 has just begun, 3 and 4 wait."""
    base, programs = tmp_path / "study", tmp_path / "programs"
    programs.mkdir()
    rows = [
        "1|RUNNING|None|9:00|n1",
        "2|RUNNING|None|9:59|n2",
        "3|PENDING|Resources|10:00|",
        "4|PENDING|BeginTime|10:00|",
    ]
    lines = "\n".join(rows)
    for name, program in {
        "squeue": f"cat << 'END'\n{lines}\nEND",
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{program}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    runs = [base / f"run-{index}" for index in range(5)]
    for run in (runs[0], runs[1], runs[4]):  # 4 has been requeued
        run.mkdir(parents=True)
    folder = base / LAUNCH / "1"
    folder.mkdir(parents=True)
    record = {"number": "7", "folder": str(folder), "runs": list(map(str, runs)), "log": str(folder / "log-7_*.txt")}
    (folder / RECORD).write_text(json.dumps(record))
    return base


def test_cancelling_a_job_that_is_no_array(study: Path, sleeptrain: Any) -> None:
    squeue = study.parent / "programs" / "squeue"
    squeue.write_text("#!/bin/bash\necho 'N/A|RUNNING|None|9:00|n1'\n")
    printed = sleeptrain("job", "cancel", str(study)).out
    assert printed == "job 7: 1 run saves after its step and ends; --now ends it without a save\n"
    assert [path.parent.name for path in study.glob("run-*/stop")] == ["run-0"]
    assert not (study.parent / "cancelled").exists()


def test_cancelling_an_array_leaves_no_job_that_begins_later(study: Path, sleeptrain: Any) -> None:
    ran = sleeptrain("job", "cancel", str(study))
    assert ran.status == 0, ran.err
    assert sorted(path.parent.name for path in study.glob("run-*/stop")) == ["run-1", "run-2"], (
        "a run that is done is not asked"
    )
    assert (study.parent / "cancelled").read_text() == "7_3 7_4\n"
    assert ran.out == (
        "job 7: 2 runs save after their step and end; --now ends them without a save\n"
        "job 7: 2 that wait are cancelled\n"
    )  # fmt: skip


def test_cancelling_an_array_now(study: Path, sleeptrain: Any) -> None:
    assert sleeptrain("job", "cancel", str(study), "--now").out == "job 7 is cancelled\n"
    assert (study.parent / "cancelled").read_text() == "7\n" and not [*study.glob("run-*/stop")]
