"""Shipped studies: every point resolves without data, and arms that are said to have equal FLOPs have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sleep_data.tasks import make
from sleeptrain.model.counts import step_flops
from sleeptrain.program import Window, compile
from sleeptrain.recipe.shipped import configs_root
from sleeptrain.study.config import load_study
from sleeptrain.study.points import Point, make_points

LARGE = {"rule110", "depo"}
"""Grids of more points than a test has time for; their one axis of arms is that of the small studies."""
NAMES = sorted({path.stem for path in (configs_root() / "study").glob("*.yaml")} - LARGE)
TASKS = {"word-problems": ("word-problems", {}), "rule110-baselines": ("rule110-demo", {"transitions": 4})}
"""By study the task file of its data, and what the command at its head changes."""


def points_of(name: str) -> list[Point]:
    """The points of the first seed."""
    study = load_study(name).value
    return make_points(replace(study, axes=study.axes | {"train.seed": [0]}), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_resolves_without_data(name: str, tmp_path: Path, sleeptrain: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sleeptrain("study", name, "--dry-run")
    assert ran.status == 0 and "data folder runs/data/" in ran.err, ran.err
    assert ran.out.count("sleeptrain train") == len(make_points(load_study(name).value, name))
    assert not list(tmp_path.iterdir())


def test_the_data_of_a_shipped_study_fit_and_missing_weights_are_named(
    tmp_path: Path, sleeptrain: Any, monkeypatch: Any
) -> None:
    """As the head of the file says, in windows of 256 tokens."""
    monkeypatch.chdir(tmp_path)
    for task in ("recall-32k", "state-32k"):
        built = sleeptrain("data", "build", task, "--out", f"runs/data/{task}", "train=64", "test=8", "window=256")
        assert built.status == 0, built.err
    changes = ("set.sleep.window=256", "set.mesh.data=1")
    dry = sleeptrain("study", "hybrid-7b-recall", *changes, "--dry-run")
    assert dry.status == 0 and dry.out.count("sleeptrain train") == 6
    [line] = dry.err.splitlines()
    assert "init_from = " in line and "runs/hybrid-7b does not exist" in line and line.endswith("[every run]")
    ran = sleeptrain("study", "hybrid-7b-recall", *changes)
    assert ran.status == 2 and line.removeprefix("warning: ") in ran.err and not Path("runs/study").exists()


@pytest.mark.parametrize("name", TASKS)
def test_arms_at_equal_flops_have_them(name: str) -> None:
    """Within half a percent, over all steps of training."""
    file, changes = TASKS[name]
    spec = yaml.safe_load((configs_root() / "task" / f"{file}.yaml").read_text())
    task = make(spec["task"], spec["parameters"] | changes)
    windows = [Window(w.start, w.stop, w.targets) for w in task.windows()]
    total = {}
    for point in points_of(name):
        recipe = point.resolved.value
        model = replace(recipe.model, vocab=task.vocabulary().size)
        program = compile(recipe.sleep, windows, len(model.pattern))
        total[point.labels["arm"]] = recipe.train.steps * step_flops(model, program, recipe.sleep)
    [longer] = [arm for arm in total if "FLOPs" in arm]
    four = next(arm for arm in total if arm.startswith("N=4"))
    assert total[longer] == pytest.approx(total[four], rel=0.005)
    assert total["N=1"] < total[four] / 2
