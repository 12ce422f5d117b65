"""Two gloo processes under torchrun, sleep_launch and DeepSpeed's launcher, and under two torchruns, as on two hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from sleeptrain.cli.main import build_parser, parse
from tests.cli.lines import TINY, run_lines

BIN = Path(sys.executable).parent
WAIT = 300.0
"""Timeout of a launch in seconds; only a hang takes that long."""
TWO = {
    "sleep_launch": [sys.executable, "-m", "sleep_launch.local", "--processes", "2", "--", "sleeptrain"],
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", "{port}", "-m", "sleeptrain"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", "{port}", "--module", "sleeptrain"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launchers")
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}
    shards.build(make("rule110", sizes), made / "runs" / "data" / "rule110-tiny", {"train": 64, "test": 8}, 0)
    return made


def launch(launcher: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    from sleep_launch.local import _free_port

    command = [word.format(port=_free_port()) for word in TWO[launcher]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    program = subprocess.Popen(
        [*command, "train", "rule110-tiny", *TINY, *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = program.communicate(timeout=WAIT)
    finally:
        program.terminate()  # launchers forward SIGTERM to their ranks; SIGKILL would orphan the ranks
        program.wait(WAIT)
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


def test_the_option_that_deepspeed_adds_is_accepted() -> None:
    assert parse(["--local_rank=1", "train", "rule110-tiny", "train.steps=2"]).overrides == ["train.steps=2"]
    assert "local_rank" not in build_parser().format_help()


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(folder: Path) -> None:
    for launcher in TWO:
        done = launch(launcher, folder, "train.steps=2", f"run_dir=runs/{launcher}")
        assert done.returncode == 0, done.stderr
        index = json.loads(
            (folder / "runs" / launcher / "checkpoints" / "step-00000002" / "checkpoint.json").read_text()
        )
        assert index["checkpoint"]["processes"] == 2
        assert (done.stdout + done.stderr).count("step 2 of 2, done") == 1
    curves = {tuple(losses(folder / "runs" / launcher)) for launcher in TWO}
    assert len(curves) == 1 and len(curves.pop()) == 2


@pytest.mark.slow
def test_a_torchrun_on_each_of_two_hosts_trains_one_run(folder: Path) -> None:
    """Both agents are on this machine, and meet at an address; the words are those of docs/clusters.md."""
    from sleep_launch.local import _free_port

    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{_free_port()}"]
    words = ["-m", "sleeptrain", "train", "rule110-tiny", *TINY, "train.steps=2", "run_dir=runs/hosts"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            [str(BIN / "torchrun"), "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", *meeting, *words],
            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = "".join(agent.communicate(timeout=WAIT)[1] for agent in agents)
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(WAIT)
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert printed.count("step 2 of 2, done") == 1
    [alone] = run_lines([["train", "rule110-tiny", *TINY, "train.steps=2", "run_dir=runs/one-host"]], folder, world=2)
    assert alone.status == 0, alone.err
    assert losses(folder / "runs" / "hosts") == losses(folder / "runs" / "one-host")


@pytest.mark.slow
def test_several_seeds_under_a_launcher_equal_single_runs(folder: Path) -> None:
    """One process group trains one seed after the other."""
    done = launch("sleep_launch", folder, "--seeds", "1,0", "train.steps=2", "run_dir=runs/seeds")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "step 2 of 2, done" in line] == [
        f"runs/seeds/seed-{seed}: step 2 of 2, done" for seed in (1, 0)
    ]
    words = ["train", "rule110-tiny", *TINY, "train.steps=2"]
    for seed in (0, 1):
        [alone] = run_lines([[*words, f"train.seed={seed}", f"run_dir=runs/alone-{seed}"]], folder, world=2)
        assert alone.status == 0, alone.err
        assert losses(folder / "runs" / "seeds" / f"seed-{seed}") == losses(folder / "runs" / f"alone-{seed}")


ERRORS = [
    pytest.param(words, message, marks=mark)
    for mark, words, message in (
        (pytest.mark.exhaustive, ["train.steps=2", "train.batch=9", "run_dir=runs/odd"], "train.batch = 9 (command line): does not divide over 2 processes; the nearest that does is 8"),
        (pytest.mark.slow, ["train.steps=0"], "train.steps = 0 (command line): must be at least 1"),
        (pytest.mark.exhaustive, ["train.steps=2", "data.sources=[{path: nope}]"], "(command line): data folder nope does not exist"),
        (pytest.mark.exhaustive, ["train.steps=2", "mesh.data=4"], "mesh.data = 4 (command line): 2 processes were started; start 4"),
        (pytest.mark.slow, ["train.steps=9", "optim.lr=1e30", "run_dir=runs/diverged"], "loss or gradient was not finite 3 times in a row"),
    )
]  # fmt: skip
"""Found before there is a process group, at its layout, and in training."""


@pytest.mark.parametrize(("words", "message"), ERRORS)
def test_an_error_of_all_ranks_is_printed_once(words: list[str], message: str, folder: Path) -> None:
    done = launch("torchrun", folder, *words)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count(message) == 1, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, ours
