"""Training under a real srun on two nodes: ranks from SLURM's variables, and stop requests by SLURM's signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.errors import CONTINUE
from tests.cli.lines import TINY, run_lines
from tests.cli.programs import WAIT, curve, rows, small_recipe, start, wait_for
from tests.slurm import Cluster

pytestmark = pytest.mark.slow
SLEEPTRAIN = [sys.executable, "-m", "sleeptrain"]
SRUN = ["srun", "--nodes=2", "--ntasks-per-node=1"]
FOREVER = 10**6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("jobs"))


def words(run: str, steps: int) -> list[str]:
    data = ["data.sources=[{path: data}]", "sleep.window=9", "train.batch=8", "checkpoint.every=0"]
    return [*SLEEPTRAIN, "train", "small.yaml", *data, *TINY, f"train.steps={steps}", f"run_dir={run}"]


def stop_job(cluster: Cluster, folder: Path, step: int, how: str) -> int:
    """Train until `step` is logged, ask srun's job to stop, and return the step at which it has saved."""
    run = folder / "run"
    srun = start(folder, [*SRUN, *words("run", FOREVER)], cluster.environ)
    try:
        wait_for(run, step, srun)
        if how == "scancel":
            cluster.run("scancel", "--signal=USR1", json.loads((run / "outcome.json").read_text())["job"])
        else:
            srun.send_signal(signal.SIGUSR2)
        printed = srun.communicate(timeout=WAIT)[1]
    finally:
        srun.kill()
        srun.wait()
    assert srun.returncode == CONTINUE, printed
    last = int(rows(run)[-1]["step"])
    assert json.loads((run / "outcome.json").read_text()) | {"job": ""} == {
        "state": "stopped",
        "step": last,
        "by": "signal",
        "job": "",
    }
    assert (run / "checkpoints" / f"step-{last:08}").is_dir()
    return last


def finish(cluster: Cluster, folder: Path, name: str, steps: int) -> list[Any]:
    """Train to the end by srun, and what an unbroken run of two processes without SLURM measured."""
    command = [*SRUN, *words(name, steps)]
    done = subprocess.run(command, cwd=folder, env=cluster.environ, capture_output=True, text=True, timeout=WAIT, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    [whole] = run_lines([words(f"{name}-whole", steps)[len(SLEEPTRAIN) :]], folder, world=2)
    assert whole.status == 0, whole.err
    return curve(folder / f"{name}-whole")


RANKS = """
import os
from sleeptrain.parallel.ranks import rank_and_world
rank, world = rank_and_world()
print(rank, world, os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"])
"""


def test_tasks_of_unequal_nodes_are_ranks(cluster: Cluster) -> None:
    """Three tasks on two nodes: one node has two, in SLURM's choice."""
    printed = cluster.run("srun", "--nodes=2", "--ntasks=3", sys.executable, "-c", RANKS)
    found = sorted(tuple(map(int, line.split())) for line in printed.splitlines())
    assert [rank for rank, *_ in found] == [0, 1, 2] and {world for _, world, *_ in found} == {3}
    assert sorted((local, size) for _, _, local, size in found) == [(0, 1), (0, 2), (1, 2)]


def test_a_job_on_two_nodes_stops_saves_and_continues(cluster: Cluster, folder: Path) -> None:
    """Stopped by `scancel --signal`, which `--signal=USR1@N` does too, and by a signal to srun, which hands it on."""
    step = stop_job(cluster, folder, 3, "scancel")
    step = stop_job(cluster, folder, step + 3, "srun")
    whole = finish(cluster, folder, "run", step + 3)
    assert curve(folder / "run") == whole
    assert json.loads((folder / "run" / "outcome.json").read_text())["state"] == "done"


@pytest.mark.parametrize("victim", ["rank 0", "srun"])
def test_a_killed_job_continues_from_its_last_checkpoint(cluster: Cluster, folder: Path, victim: str) -> None:
    """SIGKILL of a rank, which the other one notices; SIGTERM of srun itself, which kills its tasks by SIGKILL."""
    name = victim.replace(" ", "-")
    run = folder / name
    srun = start(folder, [*SRUN, *words(name, FOREVER), "checkpoint.every=1", "checkpoint.keep=2"], cluster.environ)
    try:
        wait_for(run, 3, srun)
        if victim == "srun":
            srun.terminate()
        else:
            os.kill(int(json.loads((run / "lock").read_text())["process"]), signal.SIGKILL)
        printed = srun.communicate(timeout=WAIT)[1]
    finally:
        srun.kill()
        srun.wait()
    assert srun.returncode != 0
    if victim != "srun":
        assert srun.returncode == 128 + signal.SIGKILL and "Exited with exit code 75" in printed, printed
    steps = int(rows(run)[-1]["step"]) + 3
    assert finish(cluster, folder, name, steps) == curve(run) and len(rows(run)) == steps
