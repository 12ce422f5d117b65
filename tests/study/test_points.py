"""The grid of a study: folders, changes and commands of its points, derived rates, and errors before anything runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.errors import UserError
from sleeptrain.study.config import load_study
from sleeptrain.study.points import Point, make_points

STUDY = """\
recipe: rule110-tiny
axes:
  size:
    small: {model.width: 32, train.batch: 32}
    large one: {model.width: 64, train.batch: 16}
  sleep.passes: [1, {start: 1, stop: 4, steps: 9}]
  train.seed: [3, 5]
rates:
  optim.lr: {value: 0.02, by: model.width, at: 32, power: -0.5}
  optim.weight_decay: {tune: [0.1]}
set: {mesh: {pipe: 2}, train.recompute: window, checkpoint: {every: 7}}
evaluate: {passes: [2], samples: 8}
"""


def points(folder: Path, text: str, *overrides: str) -> list[Point]:
    path = folder / "mine.yaml"
    path.write_text(text)
    return make_points(load_study(str(path), overrides).value, str(path))


def test_the_points_of_a_grid(tmp_path: Path) -> None:
    found = points(tmp_path, STUDY, "set.train.steps=9")
    assert [(p.index, p.labels["size"], p.labels["train.seed"]) for p in found] == [
        (i, "small" if i < 4 else "large one", "53"[i % 2 == 0]) for i in range(8)
    ]
    assert [str(p.folder) for p in found[:3]] == [
        f"runs/study/mine/size-small_passes-{n}_weight_decay-0.1/seed-{seed}"
        for n, seed in (("1", 3), ("1", 5), ("start-1-stop-4-steps-9", 3))
    ]
    assert len({p.folder for p in found}) == 8 and "size-large-one" in str(found[-1].folder)
    last = found[-1].resolved.value
    assert (last.model.width, last.train.batch, last.train.steps, last.train.seed) == (64, 16, 9, 5)
    assert last.optim.lr == pytest.approx(0.02 * 2**-0.5, rel=1e-5) and found[0].resolved.value.optim.lr == 0.02
    assert (last.mesh.pipe, last.checkpoint.every, last.run_dir) == (2, 7, str(found[-1].folder))
    assert found[0].train_command[:8] == [
        "python", "-m", "sleep_launch.local", "--processes", "2", "--", "sleeptrain", "train"
    ]  # fmt: skip
    assert found[-1].eval_command is not None
    assert found[-1].eval_command[3:-2] == ["--passes", "4,2", "--samples", "8"]
    assert found[0].left() == [found[0].train_command, found[0].eval_command]


@pytest.mark.parametrize("asked", ["{samples: 8}", "{data: other}", "{passes: [3]}"])
def test_a_report_of_another_evaluation_is_not_taken(tmp_path: Path, monkeypatch: Any, asked: str) -> None:
    monkeypatch.chdir(tmp_path)
    [made], [now] = (
        points(tmp_path, f"recipe: rule110-tiny\naxes: {{train.seed: [0]}}\nevaluate: {evaluate}\n")
        for evaluate in ("{}", asked)
    )
    assert made.eval_command is not None
    (made.folder / "evaluation").mkdir(parents=True)
    (made.folder / "outcome.json").write_text(json.dumps({"state": "done", "step": 4}))
    report = {"command": shlex.join(made.eval_command[:-2]), "runs": [{"step": 4}]}
    (made.folder / "evaluation" / "report.json").write_text(json.dumps(report))
    assert made.measured() == report and now.measured() is None


GOOD = "recipe: rule110-tiny\naxes: {train.seed: [0]}\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("recipe: rule110-tiny\naxes: {}\n", ["axes = {} (", "is empty; give at least one"]),
        ("recipe: rule110-tiny\naxes: {sleep.passes: [2, 1, 2], optim.lr: []}\n", ["sleep.passes has a value twice", "optim.lr has no values"]),
        ("recipe: rule110-tiny\naxes: {sleep.passes: [1], a: {x: {sleep: {}}, y: {}}}\n", ["sleep is set by a and by sleep.passes", "a: y sets no key"]),
        (f"{GOOD}rates: {{train.seed: {{tune: [1]}}, optim.lr: {{tune: [0]}}}}\n", ["tune = [0.0]", "is a list of rates above 0"]),
        (f"{GOOD}rates: {{train: {{tune: [1]}}}}\n", ["train is set by rates and by train.seed"]),
        (f"{GOOD}rates: {{optim.lr: {{value: 1, by: model.layers, at: 1}}}}\n", ["by = model.layers must name a number above 0"]),
        (f"{GOOD}set: {{run_dir: a}}\n", ["every run has its own folder"]),
        (f"{GOOD}published: [{{setting: {{b: 1}}, value: x, source: y}}]\n", ["b is not an axis"]),
        (f"{GOOD}evaluat: {{}}\nextrapolate: {{a: {{params: 0, tokens: 1}}}}\n", ["unknown key; did you mean evaluate?", "params = 0.0", "must be above 0"]),
        ("recipe: rule110-tny\naxes: {train.seed: [0, 1]}\n", ['recipe "rule110-tny": no such file', "[every run]"]),
        (
            "recipe: rule110-tiny\naxes: {sleep.passes: [0, 2], model.widht: [3], train.seed: [0, 1]}\n",
            ["sleep.passes = 0 (the study): must be at least 1", "passes-0_widht-3/seed-0 and 1 more]", "model.widht = 3 (the study): unknown key", "[every run]"],
        ),
    ],
)  # fmt: skip
def test_all_errors_at_once(tmp_path: Path, text: str, messages: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        points(tmp_path, text)
    for message in messages:
        assert message in str(raised.value), raised.value


def test_a_study_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r'study "rule110-tny": no such file.*did you mean rule110-tiny'):
        load_study("rule110-tny")


def test_a_study_is_not_put_into_a_run(sleeptrain: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 1}\n")
    (tmp_path / "manifest.json").write_text("{}")
    ran = sleeptrain("study", "rule110-tiny", f"run_dir={tmp_path}", "--dry-run")
    assert ran.status == 2 and f"error: {tmp_path} holds a run, and the study would put others into it" in ran.err


def test_nothing_runs_before_data_and_folders_are_right(tmp_path: Path, sleeptrain: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("recipe: rule110-tiny\naxes: {mesh.data: [1, 3], train.seed: [0]}\n")
    ran = sleeptrain("study", "s.yaml")
    assert ran.status == 2 and "mesh.data = 3 (the study)" in ran.err and "[runs/study/s/data-3/seed-0]" in ran.err
    (tmp_path / "s.yaml").write_text("recipe: rule110-tiny\naxes: {mesh.data: [1, 2], train.seed: [0]}\n")
    ran = sleeptrain("study", "s.yaml")
    assert ran.status == 2 and not (tmp_path / "runs").exists()
    assert "sleeptrain data build rule110-tiny --out runs/data/rule110-tiny" in ran.err and "[every run]" in ran.err
    listed = sleeptrain("study", "s.yaml", "--dry-run")
    assert (
        listed.status == 0
        and "warning: data folder runs/data/rule110-tiny" in listed.err
        and listed.out.count("sleeptrain train") == 2
    )
