"""`data build` and `data inspect`, with the task files that are shipped."""

import pytest
import yaml

from sleep_data.tasks import make
from sleeptrain.config import UserError
from sleeptrain.config.files import configs_root
from sleeptrain.data import Data, Source
from sleeptrain.data.build import build, inspect, recipes


def test_values_from_the_file_the_command_line_and_the_defaults(tmp_path):
    manifest = build("rule110-tiny", tmp_path / "a", {"train": 30, "test": 4, "width": 9, "seed": 3})
    assert manifest.body["parameters"] == {
        "strings": 2,
        "width": 9,
        "transitions": [1, 2],
        "variant": "dense",
        "holdout": 8,
    }
    assert manifest.body["seed"] == 3 and manifest.samples("train") == 30 and manifest.samples("test") == 4
    assert manifest.label == "t" and manifest.label_values == (1, 2)


def test_a_task_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: rule110\nparameters: {width: 5, holdout: 4}\ntrain: 3\ntest: 2\n")
    assert build(str(tmp_path / "mine.yaml"), tmp_path / "a").body["parameters"]["width"] == 5


@pytest.mark.parametrize(
    ("task", "parameters", "said"),
    [
        ("rule110-tny", {}, "did you mean 'rule110-tiny'"),
        ("rule110", {"transition": 4}, "did you mean 'transitions'"),
        ("rule110", {"width": 99}, "width is 99"),
        ("rule110", {"train": -1}, "train=-1"),
        ("rule110", {"train": 1.5}, "train=1.5"),
        ("rule110", {"train": None}, "say how many samples"),
        ("rule110", {"seed": None}, "seed=None"),
        ("text", {}, "paths is empty"),
    ],
)
def test_wrong_requests(tmp_path, task, parameters, said):
    with pytest.raises(UserError, match=said):
        build(task, tmp_path / "a", parameters)
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be built in"):
        build("rule110", tmp_path / "file" / "a", {"train": 1, "test": 0})


@pytest.mark.parametrize(
    ("content", "said"),
    [("task: [", "not valid YAML"), ("width: 5", "is no task file"), ("task: depo\nparameter: {}", "'parameters'")],
)
def test_wrong_task_files(tmp_path, content, said):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=said):
        build(str(tmp_path / "mine.yaml"), tmp_path / "a")


def test_shipped_task_files_are_right():
    assert {"rule110-tiny", "rule110-small", "rule110", "depo", "depo-tiny", "text"} <= set(recipes())
    for name in recipes():
        content = yaml.safe_load((configs_root() / "task" / f"{name}.yaml").read_text())
        if content["task"] != "text":  # which needs files
            make(content["task"], content["parameters"])


def test_inspect_shows_samples(folder):
    found = inspect(folder, samples=1)
    [row] = found.samples["train"]
    first, second, answer = row.split(" | ")
    assert first[:2] in ("T1", "T2") and first[:3] == second[:3] and len(first.split()[1]) == 8
    assert answer[:2] == "Q>" and answer[2] in "01"
    text = found.text()
    assert "100 samples" in text and "t = 1: chance 0.5" in text and "0-8, 9-17, 18-19 (scored)" in text
    assert found.to_json()["manifest"]["task"] == "rule110"


def test_inspect_shows_text(tmp_path):
    (tmp_path / "a.txt").write_text("so\nit|é")
    wanted = {"paths": [str(tmp_path / "a.txt")], "window": 5, "windows_per_sample": 2, "holdout": 2, "test": 0}
    build("text", tmp_path / "d", wanted)
    [row] = [row for rows in inspect(tmp_path / "d").samples.values() for row in rows]
    assert row == r"BOS so \n i | t| \xc3 \xa9 PAD"


def test_problems_of_the_section():
    def fields(data):
        return [problem.field for problem in data.problems()]

    assert fields(Data([Source("a"), Source("b")])) == []
    assert fields(Data()) == ["sources"]
    assert fields(Data([Source("a"), Source("a")], workers=-1)) == ["workers", "sources.1.path"]
    assert fields(Data([Source("a", 1.0), Source("b")])) == ["sources"]
    assert fields(Data([Source("a", 0.0)])) == ["sources.0.proportion"]
    assert fields(Data([Source("s3://a")])) == ["cache"]
