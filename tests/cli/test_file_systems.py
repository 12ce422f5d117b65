"""Saves on a file system that is full or becomes read-only: a real tmpfs, mounted where only the test sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from tests.cli.lines import TINY, run_lines
from tests.cli.programs import ENVIRONMENT, WAIT, curve, rows, start, wait_for
from tests.system import needs_system

STEPS = 6
SIZES = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("file_systems")
    shards.build(make("rule110", SIZES), made / "runs" / "data" / "rule110-tiny", {"train": 64, "test": 8}, 0)
    return made


def words(run: str, steps: int, *more: str) -> list[str]:
    every_step = ["checkpoint.every=1", "checkpoint.background=false"]
    return [
        "train",
        "rule110-tiny",
        *TINY,
        "train.batch=8",
        f"train.steps={steps}",
        f"run_dir={run}",
        *every_step,
        *more,
    ]


def mounted(folder: str, size: str, script: str) -> list[str]:
    """A command that runs a shell script in which `folder` is a tmpfs. Mounting needs root."""
    unshare = needs_system("unshare", package="util-linux")
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: only root may mount a file system")
    mount = f"mkdir -p {folder} && mount -t tmpfs -o size={size} tmpfs {folder} && "
    return [unshare, "--mount", "sh", "-c", mount + script]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run with its checkpoints."""
    (line,) = run_lines([words("whole", STEPS)], folder)
    assert line.status == 0, line.err
    return folder / "whole"


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_room_continues_it(folder: Path, whole: Path) -> None:
    """There is room for two checkpoints and a half: the third is written before the first is deleted."""
    one = sum(path.stat().st_blocks * 512 for path in (whole / "checkpoints" / f"step-{STEPS:08d}").iterdir())
    train = " ".join(f"'{word}'" for word in [sys.executable, "-m", "sleeptrain", *words("full", STEPS)])
    script = f"{train}; echo status $?; mount -o remount,size=1g full/checkpoints && {train}; echo status $?; ls full/checkpoints"
    made = subprocess.run(
        mounted("full/checkpoints", str(one * 5 // 2), script), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False
    )  # fmt: skip
    assert made.stdout.split() == ["status", "1", "status", "0", f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"], (
        made.stderr
    )
    (error,) = [line for line in made.stderr.splitlines() if line.startswith("error: ")]
    assert "rank 0 cannot write checkpoint step-00000003: No space left on device" in error
    assert "bytes wanted" in error and "the last good one is full/checkpoints/step-00000002" in error
    assert "Traceback" not in made.stderr and "full: continuing at step 2 of 6" in made.stderr
    assert curve(folder / "full") == curve(whole)


@pytest.mark.slow
def test_a_file_system_that_becomes_read_only_ends_the_run(folder: Path) -> None:
    """As kernels do after an error of the disk. The last good checkpoint can be read."""
    nsenter = needs_system("nsenter", package="util-linux")
    train = " ".join(f"'{word}'" for word in [sys.executable, "-m", "sleeptrain", *words("readonly", 10**6)])
    program = start(folder, mounted("readonly/checkpoints", "1g", f"exec {train}"))
    remount = [nsenter, "--target", str(program.pid), "--mount", "mount", "-o", "remount,ro"]
    remount.append(str(folder / "readonly" / "checkpoints"))
    try:
        wait_for(folder / "readonly", 2, program)
        while (done := subprocess.run(remount, capture_output=True, text=True, check=False)).returncode:
            assert program.poll() is None and "busy" in done.stderr, done.stderr  # in a save
        printed = program.communicate(timeout=WAIT)[1]
    finally:
        program.kill()
    last = rows(folder / "readonly")[-1]["step"]
    assert program.returncode == 1 and "Traceback" not in printed, printed
    assert f"rank 0 cannot write checkpoint step-{last:08d}: Read-only file system" in printed
    assert f"the last good one is readonly/checkpoints/step-{last - 1:08d}" in printed


@pytest.mark.slow
def test_a_disk_that_is_full_of_metrics_and_data_is_named(folder: Path) -> None:
    """A run has written its configuration and some steps; a build, some samples. Neither leaves a file that is half written."""
    line = [
        "train",
        "rule110-tiny",
        *TINY,
        "train.batch=8",
        "train.steps=500",
        "run_dir=small/run",
        "checkpoint.every=0",
    ]
    build = ["data", "build", "rule110-tiny", "--out", "small/data", "train=20000"]
    commands = [
        " ".join(f"'{word}'" for word in [sys.executable, "-m", "sleeptrain", *words]) + "; echo status $?"
        for words in (build, line)
    ]
    script = f"{commands[0]}; ls -A small; {commands[1]}; ls -A small/run"
    made = subprocess.run(
        mounted("small", "64k", script), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False
    )  # fmt: skip
    files = ["config.yaml", "environment.json", "lock", "manifest.json", "metrics.jsonl", "outcome.json"]
    assert made.stdout.split() == ["status", "1", "status", "1", *files], made.stderr
    assert [line for line in made.stderr.splitlines() if line.startswith(("error: ", "warning: "))] == [
        "error: task rule110 cannot be built in small/data: No space left on device; make room, and run the same command again",
        "warning: small/run/outcome.json cannot be written: No space left on device",
        "error: small/run/metrics.jsonl cannot be written: No space left on device; once it can, the same command continues from the last checkpoint",
    ]
    assert "Traceback" not in made.stderr
