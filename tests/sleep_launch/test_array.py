"""The script of an array's jobs on a real SLURM of three nodes: a job that is requeued leaves the others alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sleep_launch.cluster import Nodes
from sleep_launch.script import render
from tests.sleep_launch.test_script import PLAIN
from tests.slurm import Cluster

WAIT = 120.0
"""Timeout in seconds; only a hang takes that long."""
PYTHON = """\
#!/usr/bin/env bash
# In place of Python: job {index} trains until all jobs do, and is requeued; the others train until the test has seen that.
case "$*" in
    *"attempt begin"*) echo go ;;
    *"attempt end"*) [ "$SLURM_ARRAY_TASK_ID" = {index} ] && echo "again 600 n3" || echo "end 0" ;;
    *"sleeptrain train"*)
        touch "{folder}/trains-$SLURM_ARRAY_TASK_ID"
        until [ -e "{folder}/seen" ] || {{ [ "$SLURM_ARRAY_TASK_ID" = {index} ] && [ "$(ls {folder}/trains-* | wc -l)" = 3 ]; }}; do
            sleep 0.2
        done ;;
esac
"""


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 2])
def test_a_job_of_an_array_is_requeued_alone(index: int, tmp_path: Path) -> None:
    """The job that starts last has the array's own number."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(folder=tmp_path, index=index))
    python.chmod(0o755)
    job = replace(
        PLAIN, folder=str(tmp_path), runs=tuple(f"{tmp_path}/run-{i}" for i in range(3)), workdir=str(tmp_path), python=str(python),
        nodes=Nodes(tasks=2), array=(0, 1, 2),
    )  # fmt: skip
    (tmp_path / "job.sh").write_text(render(job))
    with Cluster(tmp_path / "slurm", nodes=3) as cluster:
        array = cluster.run("sbatch", "--parsable", f"--output={tmp_path}/log-%a.txt", str(tmp_path / "job.sh")).strip()
        others = {0, 1, 2} - {index}
        wait_until(lambda: jobs(cluster, array).get(index) == "PENDING BeginTime n3", tmp_path)
        states = jobs(cluster, array)
        (tmp_path / "seen").touch()
        assert {states[other] for other in others} == {"RUNNING None"}
        wait_until(lambda: not others & {*jobs(cluster, array)}, tmp_path)


def wait_until(condition: Callable[[], bool], folder: Path) -> None:
    """Wait for a condition; a test that hangs shows the jobs' logs."""
    deadline = time.monotonic() + WAIT
    while not condition():
        logs = "".join(path.read_text() for path in sorted(folder.glob("log-*.txt")))
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)


def jobs(cluster: Cluster, array: str) -> dict[int, str]:
    """State, reason and excluded nodes of every job of an array by its index."""
    lines = cluster.run("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K %T %r %x").splitlines()
    found = [line.split(maxsplit=1) for line in lines]
    return {int(number): rest.strip() for number, rest in found}
