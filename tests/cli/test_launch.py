"""Jobs on a real SLURM of three nodes: `sleeptrain launch`, `sleeptrain job`, and the job script's decisions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY
from tests.cli.programs import curve, rows, small_recipe
from tests.slurm import Cluster

pytestmark = pytest.mark.slow
FOREVER = 10**6
WAIT = 500.0
"""Timeout in seconds of what jobs do, among it a time limit of two minutes and starts on a busy machine; only a hang takes that long."""
CLUSTER = """\
nodes: {tasks: 2, local: "$SCRATCH/$SLURMD_NODENAME"}
slurm: {time: "10"}
restart: {delay: 1}
"""
WORDS = ["data.sources=[{path: data}]", "sleep.window=9", "train.batch=8", "checkpoint.every=0", *TINY]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, data and a cluster file, in which jobs run."""
    folder = small_recipe(tmp_path_factory.mktemp("jobs"))
    (folder / "three.yaml").write_text(CLUSTER)
    (folder / "scratch").mkdir()
    return folder


@pytest.fixture
def login(cluster: Cluster, jobs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, from which commands of SLURM reach the cluster."""
    monkeypatch.chdir(jobs)
    monkeypatch.setenv("SLURM_CONF", cluster.environ["SLURM_CONF"])
    monkeypatch.setenv("SCRATCH", str(jobs / "scratch"))
    return jobs


def launch(sleeptrain: Any, run: str, *words: str, nodes: str = "2") -> str:
    """Launch a training on nodes with two tasks each; returns the number of its job."""
    ran = sleeptrain(
        "launch", "small.yaml", *WORDS, f"run_dir={run}", "--cluster", "three.yaml", "--nodes", nodes, *words
    )
    assert ran.status == 0, ran.err
    return re.search(r"^job (\d+) is submitted", ran.out, re.MULTILINE)[1]  # type: ignore[index]


def wait_until(condition: Any, folder: Path) -> None:
    """Wait for a condition; a test that hangs shows the job's log."""
    deadline = time.monotonic() + WAIT
    while not condition():
        log = folder / "launch/1/log.txt"
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "the job has not begun"
        time.sleep(0.1)


def state(cluster: Cluster, job: str) -> str:
    """SLURM's state of a job."""
    return re.search(r"JobState=(\S+)", cluster.run("scontrol", "show", "job", job))[1]  # type: ignore[index]


def wait_for_end(cluster: Cluster, job: str, folder: Path) -> None:
    wait_until(lambda: state(cluster, job) in ("COMPLETED", "FAILED"), folder)


def step(run: Path) -> int:
    return int((rows(run) or [{"step": 0}])[-1]["step"])


def attempts(run: Path) -> list[dict[str, Any]]:
    path = run / "launch/1/attempts-0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_job_waits_for_no_job_that_is_unknown_or_has_failed(cluster: Cluster, login: Path, sleeptrain: Any) -> None:
    """sbatch would start it at once, or never; nothing is submitted, and no folder of the job stays."""
    failed = cluster.run("sbatch", "--parsable", f"--output={login}/failed.txt", "--wrap=exit 3").strip()
    wait_until(lambda: state(cluster, failed) == "FAILED", login / "failed")
    words = [
        "launch",
        "small.yaml",
        *WORDS,
        "train.steps=2",
        "run_dir=never",
        "--cluster",
        "three.yaml",
        "--nodes",
        "1",
        "--after",
    ]
    for job, reason in (("999999", "SLURM does not know this job"), (failed, "that job has ended as FAILED")):
        ran = sleeptrain(*words, job)
        assert ran.status == 1 and f"error: --after {job}: {reason}" in ran.err
        assert not (login / "never/launch/1").exists()
    assert not cluster.run("squeue", "--noheader").strip()


def test_a_job_goes_to_other_nodes_is_stopped_and_continues(cluster: Cluster, login: Path, sleeptrain: Any) -> None:
    """The local folder of the first node is a file. The job leaves it, trains on two others, is stopped by a signal, requeued, and has
    the losses of a run in one piece, which SLURM starts once it has ended."""
    bad = login / "scratch/n1"
    bad.touch()
    run = login / "stopped run"
    job = launch(sleeptrain, "stopped run", "train.steps=60")
    again = launch(sleeptrain, "whole", "train.steps=60", "--after", job)
    wait_until(lambda: step(run) >= 3, run)
    bad.unlink()
    cluster.run("scancel", "--signal=USR1", job)
    wait_for_end(cluster, job, run)
    assert state(cluster, job) == "COMPLETED", (run / "launch/1/log.txt").read_text()
    first, second, third = attempts(run)
    assert (first["event"], first["nodes"], first["excluded"]) == ("preflight", ["n1", "n2"], ["n1"])
    assert second["nodes"] == third["nodes"] == ["n2", "n3"] and second["step"] == 0 < third["step"] < 60
    log = (run / "launch/1/log.txt").read_text()
    assert f"preflight: n1  FAILED\n           {bad} (--local) cannot be written" in log
    wait_for_end(cluster, again, login / "whole")
    assert curve(run) == curve(login / "whole") and len(rows(run)) == 60
    assert len(attempts(login / "whole")) == 1


def test_a_job_continues_after_its_time_limit_until_it_is_cancelled(
    cluster: Cluster, login: Path, sleeptrain: Any
) -> None:
    run = login / "long"
    job = launch(
        sleeptrain,
        "long",
        f"train.steps={FOREVER}",
        "--set",
        "slurm.time=2",
        "--set",
        "slurm.lead=60",
        "--set",
        "nodes.tasks=1",
        "--set",
        "restart.limit=20",
        nodes="1",
    )
    # A start whose signal comes before it can save, on a busy machine, is followed by another.
    wait_until(lambda: 0 < attempts(run)[-1]["step"] < step(run) if attempts(run) else False, run)
    starts = len(attempts(run))
    assert starts >= 2
    [status] = json.loads(sleeptrain("job", "status", "long", "--json").out)
    assert (status["job"], status["run is"], status["starts"]) == (job, "running", starts)
    assert status["in the queue"].startswith("running on n")
    refused = sleeptrain("launch", "small.yaml", *WORDS, "train.steps=9", "run_dir=long", "--cluster", "three.yaml")
    assert refused.status == 2 and f"long has job {job}, which is running; cancel it first" in refused.err
    assert f"job {job}: 1 run saves after its step and ends" in sleeptrain("job", "cancel", "long").out
    wait_for_end(cluster, job, run)
    assert state(cluster, job) == "FAILED" and len(attempts(run)) == starts
    outcome = json.loads((run / "outcome.json").read_text())
    assert (outcome["state"], outcome["by"], outcome["step"]) == ("stopped", "file", step(run))
    assert "the run was asked to stop" in sleeptrain("job", "logs", "long").out
    [status] = json.loads(sleeptrain("job", "status", "long", "--json").out)
    assert (status["in the queue"], status["run is"]) == ("no", "stopped")


def test_a_study_is_an_array_of_jobs(cluster: Cluster, login: Path, sleeptrain: Any) -> None:
    """Four runs, their evaluation, and the report behind them; then nothing is left."""
    changes = ", ".join(
        f'"{key}": {value}' for key, _, value in (word.partition("=") for word in [*WORDS, "train.steps=6"])
    )
    (login / "four.yaml").write_text(
        f"recipe: small.yaml\nset: {{{changes}}}\naxes: {{sleep.passes: [1, 2], train.seed: [0, 1]}}\nevaluate: {{samples: 2}}\n"
    )
    study = ["study", "four.yaml", "--cluster", "three.yaml"]
    ran = sleeptrain(*study)
    assert ran.status == 0, ran.err
    array = re.search(r"^4 of 4 runs are submitted as array (\d+)", ran.out)[1]  # type: ignore[index]
    base = login / "runs/study/four"
    last = str(int(array) + 1)
    wait_until(lambda: state(cluster, last) in ("COMPLETED", "FAILED"), base)
    assert state(cluster, last) == "COMPLETED", (base / "launch/1/last.txt").read_text()
    statuses = json.loads(sleeptrain("job", "status", str(base), "--json").out)
    assert [(status["run is"], status["step"]) for status in statuses] == [("done", 6)] * 4
    report = json.loads((base / "report.json").read_text())
    assert (base / "report.html").exists() and (report["runs"], report["missing"]) == (4, [])
    assert "every run is done" in sleeptrain(*study).out


def test_a_job_that_waits_is_shown_and_cancelled(cluster: Cluster, login: Path, sleeptrain: Any) -> None:
    job = launch(sleeptrain, "waiting", "train.steps=9", "--set", "slurm.options={begin: now+1hour}")
    [status] = json.loads(sleeptrain("job", "status", "waiting", "--json").out)
    assert (status["in the queue"], status["run is"]) == ("pending (BeginTime)", None)
    logs = sleeptrain("job", "logs", "waiting")
    assert logs.status == 2 and "has written no log yet" in logs.err
    assert sleeptrain("job", "cancel", "waiting").out == f"job {job} is cancelled\n"
    assert state(cluster, job) == "CANCELLED"


def test_a_job_that_sbatch_refuses_leaves_nothing(login: Path, sleeptrain: Any) -> None:
    ran = sleeptrain(
        "launch",
        "small.yaml",
        *WORDS,
        "train.steps=9",
        "run_dir=refused",
        "--cluster",
        "three.yaml",
        "--set",
        "slurm.partition=gpu",
    )
    assert (ran.status, ran.err) == (
        1, "error: sbatch: invalid partition specified: gpu; Batch job submission failed: Invalid partition name specified\n",
    )  # fmt: skip
    assert not list((login / "refused/launch").iterdir())


def test_a_full_queue_is_told(jobs: Path, tmp_path: Path, sleeptrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch waits and tries again; the job is not submitted, and no folder of it stays."""
    monkeypatch.chdir(jobs)
    monkeypatch.setenv("SCRATCH", str(jobs / "scratch"))
    monkeypatch.setattr("sleep_launch.submit.ASK_S", 5.0)
    words = [*WORDS, "train.steps=9", "run_dir=full", "--cluster", "three.yaml", "--nodes", "1"]
    # A cluster of its own: others know jobs that have ended, and forget them at any moment.
    with Cluster(tmp_path / "slurm", nodes=1, jobs=8) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environ["SLURM_CONF"])
        cluster.run("sbatch", "--hold", "--output=/dev/null", "--array=1-7", "--wrap=true")
        ran = sleeptrain("launch", "small.yaml", *words)
    assert ran.status == 1, ran.err
    assert ran.err == (
        "error: sbatch: SLURM takes no further job now: its queue is full (MaxJobCount of slurm.conf); "
        "submit again when jobs have ended\n"
    )
    assert not list((jobs / "full/launch").iterdir())
