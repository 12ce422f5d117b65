"""`sleeptrain plan` and `sleeptrain train --dry-run`: what they say, what they refuse, and that they write nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from sleep_data import shards
from sleep_data.tasks import make
from tests.cli.lines import TINY
from tests.distributed import run

SEVEN = ["plan", "hybrid-7b", "mesh.data=4", "mesh.pipe=4", "mesh.tensor=4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data for rule110-tiny."""
    monkeypatch.chdir(tmp_path)
    built(tmp_path)
    return tmp_path


def built(folder: Path) -> None:
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}
    shards.build(make("rule110", sizes), folder / "runs" / "data" / "rule110-tiny", {"train": 256, "test": 16}, 0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_seven_billion_on_64_processes_in_the_memory_of_a_laptop(tmp_path: Path) -> None:
    """As the program itself: the model alone would take 26 GB."""
    command = [sys.executable, "-m", "sleeptrain", *SEVEN]
    folder, out, err = tmp_path / "empty", tmp_path / "stdout", tmp_path / "stderr"
    folder.mkdir()
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=folder)
        # wait4 reports the memory of this process; RUSAGE_CHILDREN is the maximum over all earlier children.
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = out.read_text()
    assert (process.returncode, err.read_text()) == (0, "")
    assert usage.ru_maxrss * 1024 < 2 << 30
    lines = printed.splitlines()
    assert lines[0].startswith("parameters   6,418,364,928: embedding 1,056,768")
    assert lines[1].split(":")[0].strip() == "6,421,272,064 on 16 processes"
    assert "64 = data 4 x pipe 4 x tensor 4, ZeRO 1" in lines[2]
    held = next(line for line in lines if "(elements held)" in line)
    assert [int(word.replace(",", "")) * 4 for word in held.split()[2:]] == [
        1606374784,
        1604261248,
        1604261248,
        1606374784,
    ]
    for word in ("optimizer", "fast weights", "graphs", "FLOPs of a step", "stage 3  blocks 24..31", "idle", "tensor"):
        assert word in printed, word
    assert "Assumed: runs/data/text is not there yet" in lines[-2] and lines[-1].startswith("Not counted: ")
    assert not list(folder.iterdir())


def test_json_says_the_same(sleeptrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sleeptrain(*SEVEN, "--json", "--speed", "4e14")
    body = json.loads(ran.out)
    assert (ran.status, ran.err) == (0, "") and body["parameters"]["total"] == 6418364928
    assert body["parameters"]["held"] == 4 * sum(stage["elements"] for stage in body["stages"])
    for stage in body["stages"]:
        assert stage["elements"] <= 4 * sum(stage["optimizer_elements"].values()) < stage["elements"] + 24
        assert 2**30 < stage["memory"]["optimizer"] < stage["memory"]["all"]
    *others, last = (stage["idle"] for stage in body["stages"])
    # Nothing reads the features of a window's last pass, so that the last stage has less backward.
    assert 0 < min(others) <= max(others) < 0.05 < last < 0.12
    assert body["seconds"] > body["flops"] / 64 / 4e14  # some of it is computed again, and stages wait
    assert body["processes"]["all"] == 64 and body["rows"]["accumulation"] * body["rows"]["group"] == 64


def test_pictures(sleeptrain: Any, folder: Path) -> None:
    words = ["plan", "rule110-tiny", *TINY, "mesh.pipe=2", "train.batch=16"]
    ran = sleeptrain(*words, "--draw", "--svg", "pictures/tiny.svg")
    assert ran.status == 0, ran.err
    assert "schedule: pictures/tiny.svg" in ran.out
    *_, first, last, legend = ran.out.splitlines()
    assert first.startswith("stage 0  |") and last.startswith("stage 1  |") and "forward of a micro-batch" in legend
    root = ET.parse(folder / "pictures" / "tiny.svg").getroot()
    assert root.tag.endswith("svg") and "2 stages" in str(next(root.iter("{http://www.w3.org/2000/svg}text")).text)
    assert "Assumed: runs/data" not in ran.out  # there is data
    assert "stage 0  |" not in sleeptrain(*words).out


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "options": (["plan", "rule110-tiny", "--processes", "0", "--speed", "-1"], ["--processes 0: must be at least 1", "--speed -1.0: must be FLOPs a second, at least 1e6"]),
    "data": (["plan", "rule110-tiny", "data.sources=[{path: x/mine}]"], ["data.sources = ", "no task is called 'mine'", "sleeptrain data build TASK --out x/mine"]),
    "batch": (["plan", "rule110-tiny", "--processes", "3"], ["train.batch = 64 (rule110-tiny.yaml:", "does not divide over 3 processes"]),
    "mesh": (["plan", "rule110-tiny", "mesh.data=2", "--processes", "3"], ["mesh.data = 2 (command line): 3 processes were started; start 2"]),
    "heads": (["plan", "rule110-tiny", "mesh.tensor=3"], ["mesh.tensor can be 1, 2"]),
    "recipe": (["plan", "rule110-tinny"], ["did you mean rule110-tiny"]),
    "draw": (["plan", "rule110-tiny", "--draw", "--json"], ["--draw draws the schedule as text"]),
    "search": (["plan", "rule110-tiny", "--search", "--draw", "--speed", "1"], ["--search needs --processes N", "--search draws no schedule", "--speed 1: with --cluster"]),
    "cluster": (["plan", "rule110-tiny", "--cluster", "h100"], ['cluster file "h100": no such file', "there are: a100-80gb, example, h100-slurm"]),
    "passes": (["plan", "rule110-tiny", "sleep.passes=100000"], ["sleep.passes = 100000 (command line): must be at most 1,000"]),
    "picture": (["plan", "rule110-tiny", "--svg", "/proc/x/y.svg"], ["--svg /proc/x/y.svg cannot be written"]),
    "dry: data": (["train", "text-small", "--dry-run"], ["data.sources = ", "runs/data/text does not exist", "sleeptrain data build text --out"]),
    "dry: batch": (["train", "rule110-tiny", "--dry-run", "train.batch=300"], ["the train split has 256 samples, fewer than one step's 300"]),
    "dry: groups": (["train", "rule110-tiny", "--dry-run", "mesh.pipe=2", "train.micro=64"], ["train.micro = 64", "groups of 2 or 3 or 4"]),
    "dry: window": (["train", "rule110-tiny", "--dry-run", "sleep.window=8"], ["sleep.window = 8 (command line)", "windows of 9 tokens"]),
    "dry: folder": (["train", "rule110-tiny", "--dry-run", "run_dir=afile/run"], ['run_dir = "afile/run" (command line): afile/run cannot be written (afile is a file)']),
    "dry: graphs": (["train", "rule110-tiny", "--dry-run", "train.cuda_graphs=true", "train.recompute=pass"], ["train.cuda_graphs = true needs a GPU"]),
    "dry: another run": (["train", "rule110-tiny", "--dry-run", "run_dir=other"], ["other holds a run of another configuration", "optim.weight_decay = 0.1", "was 0.5"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_and_nothing_is_written(sleeptrain: Any, folder: Path, name: str) -> None:
    from sleeptrain.recipe import load_recipe

    (folder / "afile").write_text("")
    (folder / "other").mkdir()
    (folder / "other" / "config.yaml").write_text(
        load_recipe("rule110-tiny", ["optim.weight_decay=0.5", "run_dir=other"]).to_yaml()
    )
    (folder / "other" / "metrics.jsonl").write_text('{"step": 1}\n')
    before = files(folder)
    words, parts = WRONG[name]
    ran = sleeptrain(*words)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert all(part in ran.err for part in parts), ran.err
    assert all(line.startswith("error: ") for line in ran.err.splitlines())
    assert files(folder) == before


def test_a_dry_run_says_what_plan_says_and_where_it_would_write(sleeptrain: Any, folder: Path) -> None:
    before, joined = files(folder), dist.is_initialized()  # by tests that ran before in this process
    words = ["rule110-tiny", *TINY, "mesh.data=2", "mesh.pipe=2", "train.batch=16"]
    ran, planned = sleeptrain("train", *words, "--dry-run"), sleeptrain("plan", *words)
    assert (ran.status, ran.err) == (0, "")
    (fits,) = (line for line in ran.out.splitlines(keepends=True) if line.startswith("fits: "))
    assert "this machine's free memory" in fits
    assert (
        ran.out.replace(fits, "")
        == planned.out
        + "\nDry run: everything was checked and nothing was written. The run would begin in runs/rule110-tiny.\n"
    )
    assert "processes    4 = data 2 x pipe 2" in ran.out
    assert files(folder) == before and dist.is_initialized() is joined


def test_a_dry_run_under_a_launcher_takes_its_processes_and_speaks_once(
    sleeptrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ran = sleeptrain("train", "rule110-tiny", *TINY, "--dry-run")
        assert (ran.status, ran.err) == (0, "")
        assert ("processes    4 = data 4" in ran.out) is (rank == "0") and bool(ran.out) is (rank == "0")


def test_a_dry_run_knows_the_checkpoint_that_it_would_go_on_from(sleeptrain: Any, folder: Path) -> None:
    step = folder / "runs" / "rule110-tiny" / "checkpoints" / "step-00000012"
    step.mkdir(parents=True)
    (step / "checkpoint.json").write_text("{}")
    ran = sleeptrain("train", "rule110-tiny", *TINY, "--dry-run")
    assert ran.out.endswith("The run would continue from step-00000012 in runs/rule110-tiny.\n")


def trained(words: list[str], folder: str) -> tuple[int, str]:
    from sleeptrain.cli.main import main

    os.chdir(folder)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return status, err.getvalue()


@pytest.mark.slow
def test_a_pipeline_says_once_how_evenly_it_is_cut(folder: Path) -> None:
    words = ["train", "rule110-tiny", *TINY, "mesh.pipe=2", "train.steps=1", "train.batch=8", "checkpoint.every=0"]
    (status, said), (other, silent) = run(trained, 2, words, str(folder), timeout=300)
    assert status == other == 0
    assert said.count("stage 0  blocks 0..0  cost ") == said.count("stage 1  blocks 1..1  cost ") == 1
    assert said.count("load imbalance ") == 1 and "blocks" not in silent


def test_a_plan_is_held_against_a_memory(sleeptrain: Any, folder: Path) -> None:
    ran = sleeptrain("plan", "rule110-tiny", "--memory", "80GiB")
    assert (
        ran.status == 0
        and "\nfits: " in ran.out
        and "of the 72 GiB that a plan may fill (90% of 80 GiB, --memory)" in ran.out
    )
    recompute = ["train.recompute=auto", "train.compile=false"]
    small = sleeptrain("plan", "rule110-tiny", "--memory", "1MiB", *recompute)
    assert small.status == 0 and "\ndoes not fit: " in small.out and "\nrecompute " in small.out, small.err
    told = json.loads(sleeptrain("plan", "rule110-tiny", "--memory", "1GB", *recompute, "--json").out)
    assert (
        told["recompute"] == "none"
        and not told["compile"]
        and told["device"] == {"bytes": 1e9, "usable": 0.9e9, "fits": True}
    )
    here = json.loads(sleeptrain("plan", "rule110-tiny", "--json").out)
    assert here["device"] is None and not here["compile"] and not here["cuda_graphs"], "this machine has no GPU"
    wrong = sleeptrain("plan", "rule110-tiny", "--memory", "80")
    assert wrong.status == 2 and "'80' is not a size with its unit, such as 80GiB" in wrong.err


def test_a_plan_on_a_cluster_says_time_and_a_search_lists_layouts(sleeptrain: Any, folder: Path) -> None:
    words = ["plan", "rule110-tiny", *TINY, "train.batch=16"]
    ran = sleeptrain(*words, "--processes", "4", "--cluster", "h100-slurm")
    assert (ran.status, ran.err) == (0, "")
    assert "a GPU of h100-slurm)\ntrain.cuda_graphs is off (auto): every pass keeps" in ran.out
    assert "\n             compiled blocks\n" in ran.out and "\nlargest train.micro that fits: 4\n" in ran.out
    assert all(
        f"\n{line}" in ran.out for line in ("time of a step", "tokens a second", "the whole run", "a checkpoint")
    )
    found = sleeptrain(*words, "--search", "--processes", "2", "mesh.tensor=1")
    assert found.status == 0 and "(assumed; --cluster says otherwise)" in found.out
    assert "mesh.data=2 mesh.pipe=1 mesh.tensor=1" in found.out and "mesh.data=1 mesh.pipe=2 mesh.tensor=1" in found.out


def test_a_long_plan_says_so(sleeptrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleeptrain.cli.plan.MANY", 3)
    assert sleeptrain("plan", "rule110-tiny", *TINY).err.startswith("planning ")
