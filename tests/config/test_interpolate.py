"""`${...}`: references to values of files, of the command line and of defaults, and to the environment."""

from __future__ import annotations

from typing import Any

import pytest


def test_references(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_SEED", "7")
    text = """
model: {width: "${sleep.window}", name: "w${.width}-${optim.lr}"}
train:
  seed: "${oc.env:TRAIN_SEED}"
  steps: ${oc.env:TRAIN_STEPS,12}
run_dir: runs/${model.name}
extra: ${optim}
data: {ratios: ["${data.ratios[1]}", 2]}
deepspeed: {a.b: {c: "${train.seed}"}}
"""
    value = read(text, "optim.lr=3").value
    assert (value.model.width, value.model.name) == (16, "w16-3")
    assert (value.train.seed, value.train.steps) == (7, 12)
    assert value.run_dir == "runs/w16-3" and value.extra == value.optim
    assert value.data.ratios == [2.0, 2.0]
    assert value.deepspeed["a.b"]["c"] == 7


def test_the_place_is_that_of_the_reference(read: Any) -> None:
    loaded = read("model: {width: 8}\ntrain:\n  seed: ${model.width}\n")
    assert loaded.value.train.seed == 8 and loaded.sources["train.seed"] == "a.yaml:3"


def test_text_from_the_environment_stays_text_where_text_is_wanted(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB", "0012")
    assert read("model: {width: 1}\nrun_dir: ${oc.env:JOB}\n").value.run_dir == "0012"


def test_all_that_cannot_be_resolved_is_told_at_once(errors: Any) -> None:
    text = "model: {width: '${nope}', name: 'a${b'}\ntrain: {seed: '${train.steps}', steps: '${train.seed}'}\ndeepspeed: {a: {b: ['${x.y}']}}\n"
    found = errors(text, "run_dir=${oc.env:NOT_THERE}", "optim.lr=x")
    assert [error.partition(": ")[0] for error in found] == [
        'model.name = "a${b" (a.yaml:1)',
        'model.width = "${nope}" (a.yaml:1)',
        'train.steps = "${train.seed}" (a.yaml:2)',
        'train.seed = "${train.steps}" (a.yaml:2)',
        'run_dir = "${oc.env:NOT_THERE}" (command line)',
        'deepspeed.a.b.0 = "${x.y}" (a.yaml:3)',
        'optim.lr = "x" (command line)',
    ]
    assert "not a valid interpolation" in found[0] and "Interpolation key 'nope' not found" in found[1]


def test_a_wrong_type_behind_a_reference(errors: Any) -> None:
    assert errors("model: {width: '${model.name}'}\n") == ['model.width = "plain" (a.yaml:1): expected a whole number']


def test_references_reach_across_files_and_see_what_overrides_them(read: Any) -> None:
    files = {
        "model/base.yaml": "model: {width: '${train.seed}', name: 'm${optim.lr}'}\n",
        "b.yaml": "include: model/base.yaml\ntrain:\n  seed: 3\n  steps: ${model.width}\n",
    }
    loaded = read("include: b.yaml\nrun_dir: ${model.name}-${train.steps}\n", "train.seed=5", "optim.lr=2", files=files)
    value = loaded.value
    assert (value.model.width, value.train.steps, value.run_dir) == (5, 5, "m2-5")
    assert loaded.sources["model.width"] == "model/base.yaml:1" and loaded.sources["train.steps"] == "b.yaml:4"
    assert loaded.sources["run_dir"] == "a.yaml:2"


def test_a_section_by_reference_has_the_place_of_the_reference_and_can_be_replaced(read: Any, sections: Any) -> None:
    text = "model: {width: 8}\noptim: {lr: 2}\nextra: ${optim}\n"
    loaded = read(text, "optim.mode=online")
    assert loaded.value.extra == sections["Optim"](2.0, "online")
    assert loaded.sources["extra.lr"] == loaded.sources["extra.mode"] == "a.yaml:3"
    assert read(text, "extra.mode=online").value.extra == sections["Optim"](0.1, "online"), (
        "not merged into the reference"
    )
    assert read(text, "extra.mode=online").value.optim == sections["Optim"](2.0)


def test_null_behind_a_reference_is_a_value(read: Any) -> None:
    assert read("model: {width: 8}\ntrain: {steps: 4}\n", "train.steps=${run_dir}").value.train.steps is None


def test_what_cannot_be_resolved_names_its_file_and_hides_no_other_error(errors: Any, read: Any) -> None:
    files = {"model/base.yaml": "model:\n  width: ${sleep.nope}\n  name: '${oc.env:NOT_THERE}'\n"}
    found = errors("include: model/base.yaml\ntrain: {seed: x, sed: 1}\n", files=files)
    assert [error.partition(": ")[0] for error in found] == [
        'model.name = "${oc.env:NOT_THERE}" (model/base.yaml:3)',
        'model.width = "${sleep.nope}" (model/base.yaml:2)',
        "train.sed = 1 (a.yaml:2)",
        'train.seed = "x" (a.yaml:2)',
    ]
    assert all("cannot be resolved" in error for error in found[:2])
    bad = "model: {width: 8, name: 'a${b'}\n"
    assert read(bad, "model.name=good").value.model.name == "good", "what is overridden need not be right"


def test_references_that_contain_each_other_are_reported(errors: Any) -> None:
    found = errors("model: {width: 8}\nsleep: {loop: '${optim}'}\noptim: {lr: '${sleep}'}\n")
    assert found == [
        f"{value}: cannot be resolved: it refers to a value that contains it"
        for value in ('sleep.loop = "${optim}" (a.yaml:2)', 'optim.lr = "${sleep}" (a.yaml:3)')
    ]
