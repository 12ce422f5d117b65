"""`key=value` on the command line."""

from __future__ import annotations

from typing import Any

import pytest

M = "model: {width: 8}\n"


def test_values_are_yaml(read: Any, sections: dict[str, type]) -> None:
    overrides = [
        "optim.lr=1e-4", "train.steps=1_000", "data.lanes=yes", "model.name=a=b", "run_dir='7'", "sleep.loop.layers=[1, 3]",
        "data.sources=[{path: x}, {path: y, share: 2}]", "data.ratios=[1, 2.5]", "deepspeed={zero: {stage: 2}, list: [1, a]}",
    ]  # fmt: skip
    loaded = read(M, *overrides)
    value = loaded.value
    assert (value.optim.lr, value.train.steps, value.data.lanes, value.model.name, value.run_dir) == (
        1e-4,
        1000,
        True,
        "a=b",
        "7",
    )
    source = sections["Source"]
    assert value.data.sources == (source("x"), source("y", 2.0)) and value.sleep.loop.layers == (1, 3)
    assert value.data.ratios == [1.0, 2.5] and value.deepspeed == {"zero": {"stage": 2}, "list": [1, "a"]}
    assert (
        loaded.sources["data.sources.1.share"] == "command line" and loaded.sources["data.sources.0.share"] == "default"
    )
    assert loaded.sources["deepspeed.zero.stage"] == "command line"


def test_the_last_one_counts_and_mappings_are_merged(read: Any) -> None:
    loaded = read(
        "model: {width: 8}\ndeepspeed: {a: {b: 1, c: 2}}\n",
        "train.seed=1",
        "train.seed=2",
        "deepspeed.a={c: 3}",
        "deepspeed.d.e=4",
    )
    assert loaded.value.train.seed == 2
    assert loaded.value.deepspeed == {"a": {"b": 1, "c": 3}, "d": {"e": 4}}
    assert loaded.sources["deepspeed.a.b"] == "a.yaml:2" and loaded.sources["deepspeed.a.c"] == "command line"


def test_elements_of_lists(read: Any, errors: Any, sections: dict[str, type]) -> None:
    text = M + "data: {sources: [{path: x}, {path: y, share: 3}]}\n"
    loaded = read(text, "data.sources.1.path=z")
    assert loaded.value.data.sources == (sections["Source"]("x"), sections["Source"]("z", 3.0))
    assert (loaded.sources["data.sources.1.path"], loaded.sources["data.sources.1.share"]) == (
        "command line",
        "a.yaml:2",
    )
    defaults = read(M, "data.sources.0.path=there")
    assert defaults.value.data.sources == (sections["Source"]("there"),)
    assert defaults.sources["data.sources.0.share"] == "default"
    (error,) = errors(text, "data.sources.2.path=z")
    assert error.startswith(
        "data.sources.2 = {path: z} (command line): data.sources has 2 elements, from 0 on; give a longer list whole: data.sources=[...]"
    )


@pytest.mark.parametrize("override", ["foo", "=3", "--train.seed=3", "train..seed=3", "+a=1", "a b=1"])
def test_bad_syntax(errors: Any, override: str) -> None:
    assert errors(M, override) == [f'"{override}" (command line): expected key=value, such as train.steps=100']


def test_bad_yaml(errors: Any) -> None:
    (error,) = errors(M, "data.sources=[{path: x}")
    assert error.startswith('data.sources = "[{path: x}" (command line): not valid YAML: ')


def test_defaults_outlive_a_value_that_is_overridden(read: Any) -> None:
    loop = read(M + "sleep: 13\n", "sleep.loop.layers=[1, 2]").value.sleep.loop
    assert (loop.layers, loop.feedback) == ((1, 2), "normed")


def test_what_is_not_a_section_can_not_have_keys(errors: Any) -> None:
    assert errors(M, "optim.lr.max=3") == ["optim.lr = {max: 3} (command line): expected a number"]
    assert errors(M, "optim=3") == ["optim = 3 (command line): expected {lr, mode}"]


def test_values_inside_a_mapping_have_their_source(errors: Any, read: Any) -> None:
    assert errors(M + "sleep: {window: 0}\n", "sleep={loop: {feedback: norm, layers: [x, 1]}, horizon: [1]}") == [
        "sleep.horizon = [1] (command line): expected all or a whole number",
        'sleep.loop.layers.0 = "x" (command line): expected a whole number',
        'sleep.loop.feedback = "norm" (command line): expected one of raw, normed; did you mean normed?',
    ]
    loaded = read(M + "sleep: {window: 4}\n", "sleep={loop: {feedback: raw}}", "data.ratios=[1, 2]", "data.ratios.1=3")
    assert loaded.sources["sleep.loop.feedback"] == "command line" and loaded.sources["sleep.window"] == "a.yaml:2"
    assert loaded.value.data.ratios == [1.0, 3.0] and loaded.sources["data.ratios"] == "command line"


def test_elements_can_be_changed_by_files_too(read: Any) -> None:
    files = {"b.yaml": "data: {sources: [{path: x}, {path: y, share: 3}]}\n"}
    loaded = read("include: b.yaml\n" + M + "data: {sources: {1: {path: z}}}\n", files=files)
    assert [(one.path, one.share) for one in loaded.value.data.sources] == [("x", 1.0), ("z", 3.0)]
    assert loaded.sources["data.sources.1.path"] == "a.yaml:3" and loaded.sources["data.sources.1.share"] == "b.yaml:1"


def test_a_default_has_no_source_of_an_override_that_was_replaced(read: Any) -> None:
    loaded = read("model: {width: 8}\n", "optim.lr=0.5", "optim=null", "optim.mode=online")
    assert loaded.value.optim.lr == 0.1
    assert (loaded.sources["optim.lr"], loaded.sources["optim.mode"]) == ("default", "command line")


def test_a_default_has_no_source_of_a_file_that_was_replaced(read: Any) -> None:
    text = "include: b.yaml\nmodel: {width: 8}\noptim: null\n"
    loaded = read(text, "optim.mode=online", files={"b.yaml": "optim: {lr: 0.5}\n"})
    assert loaded.value.optim.lr == 0.1 and loaded.sources["optim.lr"] == "default"
