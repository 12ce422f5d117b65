"""What is left in a job's folder where sbatch refuses a job; sbatch is a program of the test."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sleep_launch.submit import SlurmError, free_folder, last_job, prepare, submit
from tests.sleep_launch.test_script import PLAIN


@pytest.mark.parametrize(("refused", "recorded"), [("job.sh", False), ("last.sh", True)])
def test_a_job_in_the_queue_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, recorded: bool
) -> None:
    """An array stays known where the job behind it is refused; a job that is refused itself leaves no folder."""
    sbatch = tmp_path / "programs/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/bash\ncase $* in *{refused}) echo 'sbatch: error: quota' >&2; exit 1;; esac\necho 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    job = replace(
        PLAIN, folder=str(free_folder(tmp_path)), runs=(f"{tmp_path}/run",), workdir=str(tmp_path), array=(0,)
    )
    prepare(job, ["train: {}\n"], None, ["study", "s", "--report"])
    with pytest.raises(SlurmError, match="sbatch: quota"):
        submit(job)
    assert Path(job.folder).exists() is recorded
    found = last_job(tmp_path)
    assert (found.number if found else None) == ("7" if recorded else None)
