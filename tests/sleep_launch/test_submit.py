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


@pytest.mark.parametrize("inside", [True, False])
def test_a_job_gets_no_variables_of_the_job_that_submits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """srun of the new job would take them for options. On a login node they are options that the user has chosen."""
    sbatch, seen = tmp_path / "programs/sbatch", tmp_path / "seen"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/bash\nenv > '{seen}'\necho 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    foreign = {"SLURM_DISTRIBUTION": "cyclic", "SLURM_NTASKS": "1", "SRUN_CPUS_PER_TASK": "2"}
    own = {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_CLUSTERS": "big", "SBATCH_ACCOUNT": "team"}
    for name, value in {**foreign, **own}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if inside:
        monkeypatch.setenv("SLURM_JOB_ID", "5")
    job = replace(PLAIN, folder=str(free_folder(tmp_path)), runs=(f"{tmp_path}/run",), workdir=str(tmp_path))
    prepare(job, ["train: {}\n"], None)
    submit(job)
    lines = {*seen.read_text().splitlines()}
    assert {f"{name}={value}" for name, value in own.items()} <= lines
    assert "SLURM_JOB_ID=5" not in lines
    for name, value in foreign.items():
        assert (f"{name}={value}" in lines) is not inside, name
