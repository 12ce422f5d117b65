"""Task files: lookup by path and by name, and validity of the shipped files."""

import pytest
import yaml

from sleep_data.build import build_task
from sleep_data.tasks import make
from sleeptrain.errors import UserError
from sleeptrain.recipe.shipped import configs_root
from sleeptrain.recipe.task_files import task_file, task_names


def test_shipped_task_files_hold_valid_parameters():
    assert {"rule110-tiny", "rule110-small", "rule110", "depo", "depo-tiny", "text"} <= set(task_names())
    for name in task_names():
        content = yaml.safe_load((configs_root() / "task" / f"{name}.yaml").read_text())
        if content["task"] != "text":  # its paths are given on the command line
            make(content["task"], content["parameters"])


def test_a_shipped_file_is_found_by_name(tmp_path):
    body = build_task(task_file("rule110-tiny"), tmp_path / "a", {"train": 30, "test": 4, "width": 9, "seed": 3})
    assert body["parameters"] == {
        "strings": 2,
        "width": 9,
        "transitions": [1, 2],
        "variant": "dense",
        "holdout": 8,
    }
    assert body["seed"] == 3


def test_a_file_is_found_by_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: rule110\nparameters: {width: 5, holdout: 4}\ntrain: 3\ntest: 2\n")
    assert task_file(str(tmp_path / "mine.yaml"))["parameters"] == {"width": 5, "holdout": 4}


def test_a_task_without_file_keeps_its_defaults(monkeypatch, tmp_path):
    monkeypatch.setattr("sleeptrain.recipe.task_files.configs_root", lambda: tmp_path)
    assert task_file("rule110") == {"task": "rule110"}


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'rule110-tiny'"):
        task_file("rule110-tny")


@pytest.mark.parametrize(
    ("content", "message"),
    [("task: [", "not valid YAML"), ("width: 5", "is no task file"), ("task: depo\nparameter: {}", "'parameters'")],
)
def test_invalid_task_files_are_refused(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        task_file(str(tmp_path / "mine.yaml"))
