"""`sleeptrain study` with real trainings: the listed commands make the runs, and a study that was killed repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY, run_lines
from tests.cli.programs import WAIT, curve, small_recipe, start, wait_for

BASE = {word.partition("=")[0]: word.partition("=")[2] for word in TINY}


def study_file(folder: Path, steps: int, extra: str = "") -> Path:
    """A study of two runs, N = 1 and N = 2, of a tiny model in `folder`."""
    small_recipe(folder)
    lines = [f"  {key}: {value}" for key, value in BASE.items()]
    (folder / "s.yaml").write_text(
        "recipe: small.yaml\naxes: {sleep.passes: [1, 2]}\nset:\n" + "\n".join(lines) + "\n  sleep.window: 9\n"
        "  model.deltanet.horizon: 64\n  data.sources: [{path: data}]\n"
        f"  train: {{steps: {steps}, batch: 8}}\n  checkpoint: {{every: 1}}\n{extra}"
    )
    return folder


@pytest.mark.slow
def test_the_listed_commands_make_the_runs_of_the_report(tmp_path: Path, sleeptrain: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(study_file(tmp_path, 2, "  eval: {every: 1}\nevaluate: {passes: [2]}\n"))
    listed = json.loads(sleeptrain("study", "s.yaml", "--dry-run", "--json").out)["runs"]
    assert [run["done"] for run in listed] == [False, False] and [len(run["commands"]) for run in listed] == [2, 2]
    commands = [command[1:] for run in listed for command in run["commands"]]
    for ran in run_lines(commands, tmp_path):
        assert ran.status == 0, ran.err
    again = json.loads(sleeptrain("study", "s.yaml", "--dry-run", "--json").out)["runs"]
    assert [run["done"] for run in again] == [True, True]
    longer = json.loads(sleeptrain("study", "s.yaml", "set.train.steps=3", "--dry-run", "--json").out)["runs"]
    assert [len(run["commands"]) for run in longer] == [2, 2], "more steps continue the runs"
    found = sleeptrain("study", "s.yaml")  # everything is done: only the report is made
    assert found.status == 0 and found.err.count("done before") == 2
    report = json.loads((tmp_path / "runs" / "study" / "s" / "report.json").read_text())
    assert report["loss"] == "evaluation" and not report["missing"]
    assert [line["line"] for line in report["depth"]] == ["passes 1: N=1", "passes 1: N=2*", "passes 2: N=2"]
    # Whether a loss can be read at equal time depends on the machine: a first step may take longer than a whole run of the other.
    assert {effect["equal"] for effect in report["effects"]} - {"seconds"} == {"tokens", "FLOPs"}


@pytest.mark.slow
def test_a_study_that_was_killed_repeats_nothing(tmp_path: Path) -> None:
    study_file(tmp_path, 40)
    command = [sys.executable, "-m", "sleeptrain", "study", "s.yaml"]
    first, second = (tmp_path / "runs" / "study" / "s" / f"passes-{n}" for n in (1, 2))
    program = start(tmp_path, command)
    try:
        wait_for(second, 2, program)
        os.kill(program.pid, signal.SIGKILL)
        program.communicate(timeout=WAIT)
        deadline = time.monotonic() + WAIT
        while json.loads((second / "outcome.json").read_text())["state"] == "running":  # it saves and ends
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    made, before = (first / "metrics.jsonl").read_bytes(), curve(second)
    assert json.loads((second / "outcome.json").read_text())["state"] == "stopped" and len(before) < 40
    restarted = start(tmp_path, command)
    errors = restarted.communicate(timeout=WAIT)[1]
    assert restarted.returncode == 0, errors
    assert "passes-1: done before" in errors and (first / "metrics.jsonl").read_bytes() == made
    assert curve(second)[: len(before)] == before and len(curve(second)) == 40
    assert f"continuing at step {len(before)} of 40" in (second / "study.log").read_text()
