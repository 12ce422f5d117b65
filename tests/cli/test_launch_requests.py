"""Requests of `sleeptrain launch`, `job` and `preflight` that are checked before SLURM is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY, run_lines
from tests.cli.programs import rows, small_recipe
from tests.sleep_launch.test_script import SCRIPTS

WORDS = ["small.yaml", "data.sources=[{path: data}]", "sleep.window=9", "train.batch=8", "train.steps=9", *TINY]


CLUSTERS = {
    "example": ["mesh.data=16", "train.batch=16", 'run_dir=it\'s a "run" of $HOME'],
    "h100-slurm": ["train.batch=8", "run_dir=runs/first", "--set", "slurm.account=team-7", "--set", "slurm.time=2-0"],
}
"""Shipped cluster files, and the words of a launch on each."""


def script_words(cluster: str) -> list[str]:
    return ["launch", *WORDS, "--cluster", cluster, *CLUSTERS[cluster], "--dry-run"]


def without_places(script: str, folder: Path) -> str:
    """A script without the names of this machine."""
    return script.replace(str(folder), "/home/user/project").replace(
        str(Path(sys.executable).parent), "/opt/python/bin"
    )


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and data, and no program of SLURM on PATH."""
    monkeypatch.chdir(small_recipe(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))  # no login to W&B
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "two.yaml").write_text("nodes: {tasks: 2}\nslurm: {partition: gpu}\nrecipe: [data.workers=1]\n")
    return tmp_path


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--cluster", "nowhere"], 'error: --cluster: cluster file "nowhere": no such file'),
        (["--set", "slurm.partion=x"], 'error: --cluster: slurm.partion = "x" (command line): unknown key; did you mean slurm.partition?'),
        (["--after", "abc"], "error: --after abc: must be the number of a job, as squeue shows it"),
        (["--set", "slurm.time=soon"], 'error: --cluster: slurm.time = "soon" (command line): must be a time of SLURM'),
        (["--set", "slurm.lead=90000"], "error: --cluster: slurm.lead = 90000 (command line): must be from 1 s to half of the time limit"),
        (["--nodes", "0"], "error: --nodes 0: must be at least 1"),
        (["mesh.data=3"], "error: train.batch = 8 (command line) with mesh.data = 3 (command line)"),
        (["data.sources=[{path: gone}]"], "error: data.sources = "),
        (["--nodes", "8"], "error: train.batch = 8 (command line)"),
        (["--set", "hardware={gpus: 2, memory: 1KiB}"], "error: small.yaml needs "),
        (["--set", "hardware={gpus: 8}"], "error: --cluster two.yaml: nodes.tasks = 2 (two.yaml:1) and nodes.gpus = 0 (default), and a node has hardware.gpus = 8"),
        (["eval.every=3", "data.eval_split=gone"], "error: data.sources = "),
        (["log.wandb.mode=online"], "error: log.wandb.mode = online: there is no API key for W&B"),
    ],
)  # fmt: skip
def test_a_wrong_request_writes_nothing(login: Path, sleeptrain: Any, words: list[str], error: str) -> None:
    before = files(login)
    ran = sleeptrain("launch", *WORDS, "--cluster", "two.yaml", *words)
    assert ran.status == 2 and ran.err.startswith(error), ran.err
    assert files(login) == before


def test_a_machine_without_slurm(login: Path, sleeptrain: Any) -> None:
    before = files(login)
    ran = sleeptrain("launch", *WORDS, "--cluster", "two.yaml", "run_dir=run")
    assert ran.status == 1
    assert (
        ran.err == "error: sbatch is not on PATH: SLURM's commands are not installed here; run this on a login node\n"
    )
    assert {path for path in files(login) - before if path.is_file()} == set()


def test_a_dry_run_prints_the_script(login: Path, sleeptrain: Any) -> None:
    """The number of nodes follows from the mesh; nothing is written."""
    before = files(login)
    ran = sleeptrain("launch", *WORDS, "--cluster", "two.yaml", "mesh.data=4", "run_dir=run", "--dry-run")
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --partition=gpu", f"runs=({login}/run)"):
        assert line in lines
    assert "verified" not in ran.err, "no GPU is asked for"
    assert "on 4 ranks" in ran.err and "2 nodes x 2 tasks in partition gpu" in ran.err
    assert files(login) == before


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_script_for_a_shipped_cluster_file_is_the_committed_one(login: Path, sleeptrain: Any, cluster: str) -> None:
    """`python -m tests.cli.test_launch_requests` writes them again; look at the difference. tests/sleep_launch has shellcheck read them."""
    ran = sleeptrain(*script_words(cluster))
    assert ran.status == 0, ran.err
    assert without_places(ran.out, login) == (SCRIPTS / f"{cluster}.sh").read_text()


def test_a_job_whose_kernels_no_gpu_has_verified_says_so(
    login: Path, sleeptrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleep_kernels import verdicts, verified

    monkeypatch.setattr(verdicts, "SHIPPED", login / "shipped.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(login / "cache"))
    words = [*WORDS, "model.deltanet.head_dim=64", "train.precision=bf16", "--cluster", "two.yaml", "--dry-run"]
    note = "no GPU has verified the fused kernels for bfloat16 and heads of 64"
    for d, right, shown in ((None, None, True), (128, True, True), (64, False, True), (64, True, False)):
        if d is not None and (entry := verified.find_entry("3.7.1", "sm_90", "bfloat16", d)):
            verdicts.write(verdicts.SHIPPED, verdicts.VerdictKey.of(entry, "13.0.88"), bool(right))
        ran = sleeptrain("launch", *words, "--set", "nodes.gpus=2")
        assert ran.status == 0 and (note in ran.err) is shown, ran.err
    refused = sleeptrain("launch", *words, "--set", "nodes.gpus=2", "train.kernels=chunked")
    assert refused.status == 0 and note not in refused.err


def test_a_job_that_continues_a_run_says_what_has_changed(login: Path) -> None:
    """Words that were forgotten at another launch are seen before the job waits in the queue; the mixture may change, too."""
    shutil.copytree(login / "data", login / "more")
    mixed = "data.sources=[{{path: data, proportion: 1}}, {{path: more, proportion: {}}}]"
    other = [*WORDS, mixed.format(3), "run_dir=run", "optim.lr=0.1"]
    first, job, dry, second = run_lines(
        [
            ["train", *WORDS, mixed.format(1), "run_dir=run", "train.steps=2"],
            ["launch", *other, "--cluster", "two.yaml", "--nodes", "1", "--dry-run"],
            ["train", *other, "--dry-run"],
            ["train", *other],
        ],
        login,
    )
    assert (first.status, job.status, dry.status, second.status) == (0, 0, 0, 0), (job.err, second.err)
    told = [line.strip() for line in job.err.splitlines()]
    at = told.index("continues at step 2 of 9")
    assert told[at + 1 : at + 5] == [
        "data.sources.1.proportion = 3.0 (command line), was 1.0", "optim.lr = 0.1 (command line), was 0.001",
        "train.steps = 9 (command line), was 2", "the learning rate jumps from 0.001 in step 2 to 0.1 in step 3",
    ]  # fmt: skip
    assert dry.out.splitlines()[-6:-1] == told[at : at + 5]
    assert "data.sources.1.proportion = 3.0 (command line), was 1.0" in second.err
    *_, last = rows(login / "run")
    assert last["rows_by_source"] == {"data": 8 + 7 * 2, "more": 8 + 7 * 6}


@pytest.mark.parametrize("action", ["status", "logs", "cancel"])
def test_a_run_without_a_job(login: Path, sleeptrain: Any, action: str) -> None:
    ran = sleeptrain("job", action, "run")
    assert (ran.status, ran.err) == (
        2, "error: run: no job of SLURM was submitted for it; `sleeptrain launch` submits one\n",
    )  # fmt: skip


def test_preflight_of_one_process(tmp_path: Path, sleeptrain: Any) -> None:
    """It measures a matrix product, writes into the run folder and the local one, and shows what is wrong."""
    good = sleeptrain(
        "preflight", str(tmp_path / "nodes"), "--run-dir", str(tmp_path / "run"), "--local", str(tmp_path / "local")
    )
    assert good.status == 0, good.out
    [result] = [json.loads(path.read_text()) for path in (tmp_path / "nodes").glob("*.json")]
    assert result["speeds"]["matmul"] > 0 and result["failures"] == [] and abs(result["clock"]) < 5
    assert list((tmp_path / "run").iterdir()) == list((tmp_path / "local").iterdir()) == []
    (tmp_path / "file").touch()
    space = os.statvfs(tmp_path)
    wanted = str(2 * space.f_blocks * space.f_frsize)
    words = ["--run-dir", str(tmp_path / "run"), "--space", wanted, "--local", str(tmp_path / "file"), "--gpus", "1000"]
    bad = sleeptrain("preflight", str(tmp_path / "nodes"), *words, "--json")
    assert bad.status == 1
    [reasons] = json.loads(bad.out)["nodes"].values()
    assert [reason.partition(" (")[0] for reason in reasons[:2]] == [str(tmp_path / "run"), str(tmp_path / "file")]
    assert reasons[2].startswith("torch finds ")
    # Of a run that goes on, the checkpoints that it has already count: a save needs the room of one more.
    for step in range(100):
        made = tmp_path / f"run/checkpoints/step-{step:08}"
        made.mkdir(parents=True)
        (made / "checkpoint.json").touch()
        with (made / "weights").open("wb") as file:
            file.truncate(int(wanted) // 100)
    [reasons] = json.loads(sleeptrain("preflight", str(tmp_path / "nodes"), *words, "--json").out)["nodes"].values()
    assert not any(reason.startswith(str(tmp_path / "run")) for reason in reasons), reasons
    empty = sleeptrain("preflight", str(tmp_path / "other"), "--show")
    assert empty.status == 2 and "holds no results of preflight" in empty.err


def test_a_study_whose_runs_need_other_numbers_of_processes_is_no_array(login: Path, sleeptrain: Any) -> None:
    changes = ", ".join(f'"{key}": {value}' for key, _, value in (word.partition("=") for word in WORDS[1:]))
    (login / "mixed.yaml").write_text(f"recipe: small.yaml\nset: {{{changes}}}\naxes: {{mesh.data: [1, 2]}}\n")
    before = files(login)
    ran = sleeptrain("study", "mixed.yaml", "--cluster", "two.yaml")
    assert ran.status == 2 and ran.err.startswith("error: the runs of this study need 1, 2 processes"), ran.err
    study = ["study", "mixed.yaml", "axes={mesh.data: [1]}", "--cluster", "two.yaml", "--dry-run"]
    large = sleeptrain(*study, "--set", "hardware={gpus: 2, memory: 1KiB}")
    assert large.status == 2 and "data-1 needs " in large.err and "on 1 processes, more than" in large.err, large.err
    alone = sleeptrain(*study)
    assert alone.status == 0, alone.err
    assert '-m sleeptrain train "$job/recipe-$index.yaml"' in alone.out
    for line in ("#SBATCH --array=0", "#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"):
        assert line in alone.out.splitlines()
    assert files(login) == before
    both = sleeptrain("study", "mixed.yaml", "--cluster", "two.yaml", "--index", "0")
    assert both.status == 2 and "leave out --index" in both.err


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        small_recipe(Path(made))
        for name in CLUSTERS:
            command = [sys.executable, "-m", "sleeptrain", *script_words(name)]
            printed = subprocess.run(command, cwd=made, capture_output=True, text=True, check=True).stdout
            (SCRIPTS / f"{name}.sh").write_text(without_places(printed, Path(made)))
