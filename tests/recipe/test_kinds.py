"""Names of another kind than the wanted one: each error says what the name is, and which command takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sleeptrain.cli.cluster import load_cluster
from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.study.config import load_study


def errors(load: Any, name: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(name, overrides)
    return caught.value.errors


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_recipe, "rule110-baselines", "recipe rule110-baselines: this is a study; run it with: sleeptrain study rule110-baselines"),
        (load_recipe, "study/rule110-tiny", "recipe study/rule110-tiny: this is a study; run it with: sleeptrain study study/rule110-tiny"),
        (load_recipe, "copy-tiny", "recipe copy-tiny: this is a task file; build its data with: sleeptrain data build copy-tiny --out DIR"),
        (load_recipe, "h100-slurm", "recipe h100-slurm: this is a cluster file; it is named by --cluster of sleeptrain launch and plan"),
        (load_study, "hybrid-1b", "study hybrid-1b: this is a recipe; train it with: sleeptrain train hybrid-1b"),
        (load_cluster, "hybrid-1b", "--cluster: cluster file hybrid-1b: this is a recipe; train it with: sleeptrain train hybrid-1b"),
    ],
)  # fmt: skip
def test_shipped_files_of_another_kind(load: Any, name: str, message: str) -> None:
    assert errors(load, name) == [message]


def test_files_of_ones_own_are_told_by_their_keys(tmp_path: Path) -> None:
    study = tmp_path / "grid.yaml"
    study.write_text("recipe: rule110-tiny\naxes: {train.seed: [0, 1]}\n")
    assert errors(load_recipe, str(study)) == [
        f"recipe {study}: this is a study; run it with: sleeptrain study {study}"
    ]
    load_study(str(study))


def test_errors_of_a_file_of_the_right_kind_stay(tmp_path: Path) -> None:
    assert "train.stepz" in errors(load_recipe, "rule110-tiny", "train.stepz=4")[0]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("include: [model/ag-tiny.yaml]\ntrain: {stepz: 4}\n")
    assert any("did you mean train.steps?" in line for line in errors(load_recipe, str(recipe)))


def test_folders(tmp_path: Path) -> None:
    run, seeds, data, empty = (tmp_path / name for name in ("run", "seeds", "data", "empty"))
    for folder in (run, seeds / "seed-0", data, empty):
        folder.mkdir(parents=True)
    for folder in (run, seeds / "seed-0"):
        (folder / "config.yaml").write_text("train: {steps: 1}\n")
        (folder / "manifest.json").write_text("{}")
    (data / "manifest.json").write_text("{}")
    assert errors(load_recipe, str(run)) == [
        f"recipe {run}: this is the folder of a run; its recipe is {run}/config.yaml"
    ]
    assert errors(load_recipe, str(seeds)) == [
        f"recipe {seeds}: this is the folder of several runs; the recipe of one is {seeds}/seed-0/config.yaml"
    ]
    [line] = errors(load_recipe, str(data))
    assert line.endswith(f"this is a folder of data; a recipe names it as data.sources=[{{path: {data}}}]")
    assert errors(load_study, str(empty))[0].endswith(
        "this is a folder; give a YAML file, or the name of one in configs/study/"
    )
    assert "no such file" in errors(load_recipe, "")[0]
