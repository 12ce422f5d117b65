"""Shipped recipes: each loads, has a source for every value, names the command that builds its data, and trains at toy size."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sleep_data.tasks import make
from sleep_data.text import Text
from sleeptrain.data.manifest import WINDOWS
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.shipped import configs_root
from tests.cli.lines import TINY, Line, run_lines

NAMES = sorted(path.stem for path in configs_root().glob("*.yaml"))
NEEDED = {"rule110-tiny", "rule110-small", "rule110", "depo", "text-small", "hybrid-1b", "hybrid-7b", "jet-nemotron-2b"}
TASKS = {
    "rule110": (["rule110", "strings=2", "width=8", "transitions=2", "holdout=8", "variant=paper"], 8),
    "depo": (["depo-tiny"], 16),
    "recall": (["recall-tiny"], 64),
    "text": (["text", "paths=[documents]", "block=960", "holdout=6"], 8),
}
"""Build arguments and window length of each task at toy size."""


def task_of(name: str) -> str:
    """The task whose data the command in a recipe's comment builds."""
    return next(task for task in TASKS if re.search(rf"data build {task}\b", comment(name)))


def comment(name: str) -> str:
    """The comment lines of a recipe."""
    lines = (configs_root() / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def toy(name: str) -> list[str]:
    """The command line that trains a recipe for two steps at toy size."""
    task = task_of(name)
    changes = [
        "train.steps=2", "train.tokens=null", "train.batch=4", "train.precision=fp32", "data.workers=0", "log.every=1",
        f"data.sources=[{{path: data/{task}}}]", f"sleep.window={TASKS[task][1]}", f"run_dir=toy/{name}", "data.row=24",
    ]  # fmt: skip
    recipe = load_recipe(name).value
    changes += ["train.micro=2"] if recipe.train.micro else []
    changes += ["model.vocab=null"] if recipe.model.vocab else []
    if recipe.model.deltanet.generator:
        changes += ["model.deltanet.generator=4", "model.deltanet.value_dim=12"]
        changes += ["model.layers=GALG", "sleep.loop.layers=[1, 3]"]
    return ["train", name, *TINY, *changes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recipes")
    (made / "documents").mkdir()
    for i in range(30):
        (made / "documents" / f"{i}.txt").write_text(f"sleep number {i}. " * (i % 7 + 1))
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Line]:
    """The data builds and then all recipes, run in one process."""
    builds = [["data", "build", *words, "--out", f"data/{task}"] for task, (words, _) in TASKS.items()]
    builds = [words if "text" in words else [*words, "train=32", "test=8"] for words in builds]
    lines = run_lines([*builds, *(toy(name) for name in NAMES)], folder)
    assert [line.status for line in lines[: len(builds)]] == [0] * len(builds), lines[: len(builds)]
    return dict(zip(NAMES, lines[len(builds) :], strict=True))


def test_the_documented_recipes_exist() -> None:
    assert set(NAMES) >= NEEDED


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_source(name: str) -> None:
    resolved = load_recipe(name)
    text = {file: (configs_root() / file).read_text().splitlines() for file in _files(resolved.sources)}
    for path, value, source in resolved.rows():
        if source == "default":
            continue
        file, line = source.split(":")
        assert path.split(".")[-1] in text[file][int(line) - 1] or path.startswith("data.sources"), (
            path,
            value,
            source,
        )
    own = {path for path, source in resolved.sources.items() if source.startswith(f"{name}.yaml:")}
    assert {"sleep.window", "optim.name", "train.batch"} <= own
    assert resolved.sources["model.width"].startswith("model/")


def _files(sources: dict[str, str]) -> set[str]:
    return {source.partition(":")[0] for source in sources.values()} - {"default"}


@pytest.mark.parametrize("name", NAMES)
def test_explain_shows_values_and_sources(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sleeptrain.cli.main import main

    assert main(["train", name, "--explain"]) == 0
    shown = capsys.readouterr().out
    assert f"{name}.yaml:" in shown and "model/" in shown and "default" in shown and "train.batch" in shown


@pytest.mark.parametrize("name", NAMES)
def test_its_comment_builds_the_data_it_reads(name: str) -> None:
    from sleeptrain.cli.main import parse

    command = re.search(r"sleeptrain data build .*", comment(name))
    assert command, f"{name}.yaml does not say how its data is built"
    args: Any = parse(shlex.split(command[0])[1:])
    assert [source.path for source in load_recipe(name).value.data.sources] == [args.out]
    given = dict(word.split("=", 1) for word in args.overrides)
    window = load_recipe(name).value.sleep.window
    if args.task == "text":
        row = load_recipe(name).value.data.row or WINDOWS * window
        assert "paths" in given and row % window == Text.block % row == 0
        return
    task = yaml.safe_load((configs_root() / "task" / f"{args.task}.yaml").read_text())
    assert max(w.stop - w.start for w in make(task["task"], task["parameters"]).windows()) == window


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_at_toy_size(ran: dict[str, Line], folder: Path, name: str) -> None:
    assert ran[name].status == 0, ran[name].err
    rows = [json.loads(line) for line in (folder / "toy" / name / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 and not row["skipped"] for row in rows)
    assert rows[0]["passes"] == load_recipe(name).value.sleep.max_passes


@pytest.mark.parametrize("name", ["rule110", "rule110-small", "rule110-demo", "rule110-tiny", "depo"])
def test_the_papers_tasks_carry_nothing_but_fast_weights(name: str) -> None:
    """As in arXiv 2605.26099; those that are trained with several numbers of passes start from the same decays in all of them."""
    values = [load_recipe(name, [f"sleep.passes={passes}"]).value for passes in (1, 4)]
    assert not any(value.sleep.evict.conv_carry for value in values)
    horizons = {value.model.deltanet.horizon for value in values}
    assert len(horizons) == 1 and (None in horizons) == (name == "rule110-tiny")
