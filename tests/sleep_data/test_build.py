"""Shards from task files: values of the file, overrides and defaults, and requests that are wrong."""

import pytest

from sleep_data.build import build_task, read_task_file


def test_overrides_replace_values_of_the_file_and_defaults(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "task: rule110\nparameters: {strings: 2, width: 8, transitions: [1, 2], variant: dense, holdout: 8}\n"
        "train: 4000\ntest: 256\nseed: 0\n"
    )
    body = build_task(read_task_file(path), tmp_path / "a", {"train": 30, "test": 4, "width": 9, "seed": 3})
    assert body["parameters"] == {
        "strings": 2,
        "width": 9,
        "transitions": [1, 2],
        "variant": "dense",
        "holdout": 8,
    }
    assert body["seed"] == 3 and body["splits"]["train"]["samples"] == 30 and body["splits"]["test"]["samples"] == 4
    assert body["label"] == {"name": "t", "values": [1, 2]}


def test_file_with_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: rule110\nparameters: {width: 5, holdout: 4}\ntrain: 3\ntest: 2\n")
    assert build_task(read_task_file(tmp_path / "mine.yaml"), tmp_path / "a")["parameters"]["width"] == 5


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("rul110", {}, "did you mean 'rule110'"),
        ("rule110", {"transition": 4}, "did you mean 'transitions'"),
        ("rule110", {"trian": 4}, "did you mean 'train'"),
        ("rule110", {"width": False}, "width=false of rule110 has the wrong type; it takes a whole number$"),
        ("rule110", {"transitions": "4"}, 'transitions="4" .* it takes a whole number or a list of these$'),
        ("rule110", {"width": 99}, "width is 99"),
        ("rule110", {"train": -1}, "train=-1"),
        ("rule110", {"train": 1.5}, "train=1.5"),
        (
            "rule110",
            {"test": None},
            "^test=null: a generated task has no last sample; give their number, such as test=1000",
        ),
        ("rule110", {"seed": None}, "seed=None"),
        ("text", {}, "paths is empty"),
    ],
)
def test_wrong_requests(tmp_path, task, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_task({"task": task}, tmp_path / "a", overrides)
    assert not list(tmp_path.iterdir())


def test_destination_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be built in"):
        build_task({"task": "rule110"}, tmp_path / "file" / "a", {"train": 1, "test": 0})
    with pytest.raises(ValueError, match="file is a file, not a folder of shards"):
        build_task({"task": "rule110"}, tmp_path / "file", {"train": 1, "test": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"task: [", "not valid YAML"),
        (b"width: 5", "is no task file"),
        (b"task: depo\nparameter: {}", "'parameters'"),
        (b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_wrong_task_files(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_task_file(tmp_path / "mine.yaml")
