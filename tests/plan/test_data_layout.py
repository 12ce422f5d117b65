"""Data layout of a plan: from shards, from the task after which a missing folder is named, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from sleeptrain.data.budget import SourceSize
from sleeptrain.errors import UserError
from sleeptrain.plan import resolve_data
from sleeptrain.recipe import load_recipe
from tests.plan.plans import layout_of
from tests.train.jobs import SMALL, recipe_file, rule110_data, text_data

CONFIGS = Path(__file__).parents[2] / "configs"


def resolve(*overrides, name="text-small", windows=None):
    return resolve_data(load_recipe(name, overrides), windows)


def test_existing_data_completes_the_recipe_without_assumptions(tmp_path):
    data = text_data(tmp_path)
    source = f"data.sources=[{{path: {data}}}]"
    resolved, layout = resolve_data(
        load_recipe(recipe_file(tmp_path), [*SMALL, source, "sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every"])
    )  # fmt: skip
    assert [(w.start, w.stop, w.targets) for w in layout.windows] == [(0, 16, True), (16, 32, True), (32, 48, True)]
    assert (layout.assumed, layout.mask) == (None, "valid")  # rows hold several documents
    assert resolved.value.model.vocab == 258 and resolved.value.model.deltanet.horizon == 2 * 2 * 48
    unpadded = rule110_data(tmp_path)
    words = [*SMALL, f"data.sources=[{{path: {unpadded}}}]", "sleep.window=9"]
    assert resolve_data(load_recipe(recipe_file(tmp_path), words))[1].mask is None


def test_a_folder_named_after_a_task_has_the_windows_of_that_task():
    resolved, layout = resolve("data.sources=[{path: nowhere/rule110}]", name="rule110")
    assert [(w.start, w.stop, w.targets) for w in layout.windows] == [
        *((24 * i, 24 * i + 24, False) for i in range(4)), (96, 100, True),
    ]  # fmt: skip
    assert layout.assumed is not None and "nowhere/rule110 is not there yet" in layout.assumed
    assert resolved.value.model.vocab == 4 and layout.mask is None


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_recipe_is_planned_before_its_data_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, layout = resolve(name=name)
    assert layout.assumed is not None and "is not there yet" in layout.assumed


def test_text_is_assumed_to_have_the_windows_and_vocabulary_of_the_recipe_or_bytes():
    resolved, layout = resolve("data.sources=[{path: nowhere/text}]", "sleep.window=32")
    assert len(layout.windows) == 8 and layout.windows[-1].stop == 256 and all(w.targets for w in layout.windows)
    assert resolved.value.model.vocab == 258 and "258 token ids (bytes; model.vocab=N for a tokenizer)" in str(
        layout.assumed
    )
    resolved, layout = resolve("data.sources=[{path: nowhere/text}]", "model.vocab=32000", windows=3)
    assert len(layout.windows) == 3 and resolved.value.model.vocab == 32000
    assert "32,000 token ids" in str(layout.assumed) and "bytes" not in str(layout.assumed) and layout.mask == "valid"


def test_an_unknown_missing_folder_is_refused_with_the_command_that_builds_it():
    with pytest.raises(UserError) as caught:
        resolve("data.sources=[{path: nowhere/mine}]")
    (line,) = caught.value.errors
    assert line.startswith("data.sources = [{path: nowhere/mine") and "(command line): data folder nowhere/mine" in line
    assert "sleeptrain data build TASK --out nowhere/mine" in line and "rule110-tiny" in line


def test_windows_that_do_not_fit_the_recipe_are_refused():
    with pytest.raises(UserError, match=r"sleep\.window = 8 .*windows of 24 tokens; set sleep\.window=24"):
        resolve("data.sources=[{path: nowhere/rule110}]", "sleep.window=8", name="rule110")


def test_padding_is_that_of_the_rows_that_a_run_reads():
    """In the proportions of the mix; a source of proportion 0 is only evaluated."""
    layout = layout_of("train.batch=8", "train.steps=10", "train.tokens=null")
    length = layout.length
    sizes = (SourceSize(100, 100 * length), SourceSize(900, 900 * length // 2))

    def padding(*shares):
        given = [f"{{path: nowhere/text, name: s{i}, proportion: {share}}}" for i, share in enumerate(shares)]
        sources = load_recipe(
            "text-small", [f"data.sources=[{', '.join(given)}]".replace("nowhere/text", "a", 1)]
        ).value
        return replace(layout, job=replace(layout.job, data=sources.data), sizes=sizes).padding

    assert padding("null", "null") == pytest.approx(900 / 1000 / 2)
    assert padding(1, 1) == pytest.approx(1 / 2 / 2)
    assert padding(1, 0) == 0
    assert padding("[[0, 1], [10, 0]]", 1) == pytest.approx(
        1 - sum((1 - i / 10 + 0.5) / (2 - i / 10) for i in range(10)) / 10
    )
