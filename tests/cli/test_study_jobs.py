"""A study that is submitted as an array: what its jobs run is fixed then; sbatch is a program of the test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lines import TINY
from tests.cli.programs import small_recipe

STUDY = """\
recipe: small.yaml
set: {{{changes}}}
axes: {{sleep.passes: [1, 2], train.seed: [0, 1]}}
evaluate: {{samples: 2}}
"""


def test_a_study_that_is_edited_later_changes_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeptrain: Any
) -> None:
    """Another value of an axis gives the indices of an array to other runs."""
    monkeypatch.chdir(small_recipe(tmp_path))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/bash\necho 7\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    words = ["data.sources=[{path: data}]", "sleep.window=9", "train.batch=8", "train.steps=6", *TINY]
    changes = ", ".join(f'"{key}": {value}' for key, _, value in (word.partition("=") for word in words))
    (tmp_path / "four.yaml").write_text(STUDY.format(changes=changes))
    (tmp_path / "three.yaml").write_text("nodes: {tasks: 1}\n")
    ran = sleeptrain("study", "four.yaml", "--cluster", "three.yaml")
    assert ran.status == 0, ran.err
    job = tmp_path / "runs/study/four/launch/1"
    assert "four.yaml" not in (job / "job.sh").read_text(), "the jobs of the array do not read it"
    for index, (passes, seed) in enumerate(((1, 0), (1, 1), (2, 0), (2, 1))):
        run = f"runs/study/four/passes-{passes}/seed-{seed}"
        assert f"seed: {seed}" in (job / f"recipe-{index}.yaml").read_text()
        assert (job / f"then-{index}").read_text().split("\0") == [
            "eval", run, "--passes", str(passes), "--samples", "2", "--out", f"{run}/evaluation", ""
        ]  # fmt: skip
