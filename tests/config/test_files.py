"""Finding recipes, reading them with places, and including others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.config import load
from sleeptrain.errors import UserError

M = "model: {width: 8}\n"


def test_a_recipe_is_a_path_or_a_name(
    read: Any, sections: dict[str, type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(M).value
    kind, elsewhere = sections["Recipe"], tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    for name, root in [
        ("a", tmp_path),
        ("a.yaml", tmp_path),
        (str(tmp_path / "a.yaml"), elsewhere),
        ("a.yaml", elsewhere),
    ]:
        assert load(name, [], kind, root=root).value == expected


def test_unknown_recipes_are_told_with_the_nearest_name(sections: dict[str, type], tmp_path: Path) -> None:
    for name in ("rule110-tiny", "rule110-small", "depo"):
        (tmp_path / f"{name}.yaml").write_text(M)
    with pytest.raises(UserError) as caught:
        load("rule110-tny", ["train.sed=1"], sections["Recipe"], root=tmp_path)
    assert caught.value.errors == [
        f'recipe "rule110-tny": no such file, and none of that name in {tmp_path}; did you mean rule110-tiny or rule110-small?'
    ]
    with pytest.raises(UserError, match="there are: depo, rule110-small, rule110-tiny"):
        load("xyz", [], sections["Recipe"], root=tmp_path)


def test_later_files_override_earlier_ones_and_the_own_keys_override_all(read: Any) -> None:
    files = {
        "model/small.yaml": "include: deep/base.yaml\nmodel: {name: small}\noptim: {lr: 2}\n",
        "model/deep/base.yaml": "model:\n  width: 1\n  name: base\ntrain: {seed: 1}\n",
        "train/long.yaml": "include: [model/deep/base.yaml]\ntrain: {seed: 2, steps: 3}\noptim: {lr: 3}\n",
    }
    loaded = read("include: [model/small.yaml, train/long.yaml]\ntrain: {steps: 4}\n", files=files)
    value, sources = loaded.value, loaded.sources
    assert (value.model.width, value.model.name) == (1, "base")
    assert (value.optim.lr, value.train.seed, value.train.steps) == (3.0, 2, 4)
    assert sources["model.width"] == "model/deep/base.yaml:2"
    assert sources["optim.lr"] == "train/long.yaml:3"
    assert sources["train.seed"] == "train/long.yaml:2"
    assert sources["train.steps"] == "a.yaml:2"
    assert sources["sleep.window"] == "default"


def test_missing_circular_and_malformed_includes(errors: Callable[..., list[str]]) -> None:
    (missing,) = errors("include: [model/smal.yaml]\n", files={"model/small.yaml": M})
    assert missing.startswith('include "model/smal.yaml" (a.yaml:1): no such file') and missing.endswith(
        "did you mean model/small.yaml?"
    )
    (circle,) = errors("include: [b.yaml]\n", files={"b.yaml": "include:\n  - a.yaml\n"})
    assert circle == 'include "a.yaml" (b.yaml:2): files include each other: a.yaml -> b.yaml -> a.yaml'
    (shape,) = errors("include: [3]\n")
    assert shape.startswith("include (a.yaml:1): expected a list of files")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  width: [1\n", "a.yaml:3: not valid YAML"),
        ("model:\n\twidth: 1\n", "a.yaml:2: not valid YAML"),
        ("- 1\n- 2\n", "a.yaml:1: a recipe is a mapping of sections, not [1, 2]"),
        (
            "model: {width: 1}\ntrain: {seed: 1}\nmodel: {width: 2}\n",
            "a.yaml:3: model is given twice, first at a.yaml:1",
        ),
        ("model: &m {width: 1, name: *m}\n", "a.yaml:1: an alias (*) refers to what contains it"),
        ("model: {width: !!binary abcd}\n", "a.yaml:1: the tag tag:yaml.org,2002:binary means nothing in a recipe"),
        ("model: {? [a] : 1}\n", "a.yaml:1: a key must be a word"),
    ],
)
def test_bad_yaml_is_told_with_its_line_and_without_guesses(errors: Any, text: str, expected: str) -> None:
    (error,) = errors(text, "train.seed=x")
    assert error.startswith(expected)


def test_a_file_that_is_no_text(errors: Any, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    (error,) = errors("include: [b.yaml]\n")
    assert error.startswith("b.yaml: cannot be read")


def test_an_empty_recipe_is_all_defaults(read: Any, errors: Any) -> None:
    assert errors("# nothing\n") == ["model.width: missing; expected a whole number"]
    assert read("", "model.width=3").value.model.width == 3


def test_aliases_are_followed(read: Any) -> None:
    loaded = read("model: {width: &w 8}\ntrain: {seed: *w}\n")
    assert loaded.value.train.seed == 8
