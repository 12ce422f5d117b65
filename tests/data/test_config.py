"""Problems of the section `data:` that are found without opening any data."""

import pytest

from sleeptrain.data import Data, Source
from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe


def test_problems_name_the_field():
    def fields(data):
        return [problem.field for problem in data.problems()]

    assert fields(Data([Source("a"), Source("b")])) == []
    assert fields(Data()) == ["sources"]
    assert fields(Data([Source("a"), Source("a")], workers=-1)) == ["workers", "sources.1.path"]
    assert fields(Data([Source("a", 1.0), Source("b")])) == ["sources"]
    assert fields(Data([Source("a", -1.0), Source("b", [])])) == ["sources.0.proportion", "sources.1.proportion"]
    assert fields(Data([Source("a", [(5, 1.0), (5, 2.0)])])) == ["sources.0.proportion"]
    assert fields(Data([Source("a", [(-1, 1.0), (5, float("nan"))])])) == ["sources.0.proportion"] * 2
    assert fields(Data([Source("a/x"), Source("b/x")])) == ["sources.1"]
    assert fields(Data([Source("a/x"), Source("b/x", name="y"), Source("c", name="y")])) == ["sources.2"]
    assert fields(Data([Source("s3://a")])) == ["cache"]


def test_a_step_without_any_proportion_is_named():
    fading = Data([Source("a", [(0, 1.0), (100, 0.0)]), Source("b", [(100, 0.0), (200, 1.0)])])
    [problem] = fading.problems()
    assert problem.field == "sources" and "all proportions are 0 at step 100;" in problem.message
    [problem] = Data([Source("a", 0.0)]).problems()
    assert "all proportions are 0 at step 0;" in problem.message
    assert Data([Source("a", [(0, 1.0), (100, 0.0)]), Source("b", [(99, 0.0), (200, 1.0)])]).problems() == []


def test_recipes_write_proportions_as_numbers_or_points(tmp_path):
    words = "data.sources=[{path: a, name: code, proportion: [[0, 0.7], [1000, 0]]}, {path: b, proportion: 1}]"
    (tmp_path / "recipe.yaml").write_text("train: {steps: 3}\n")
    sources = load_recipe(str(tmp_path / "recipe.yaml"), [words]).value.data.sources
    assert [source.points for source in sources] == [((0, 0.7), (1000, 0.0)), ((0, 1.0),)]
    assert [source.label for source in sources] == ["code", "b"]
    with pytest.raises(
        UserError, match=r"data\.sources\.0\.proportion.*must be at least 0 and finite, and is -1.0 at step 0"
    ):
        load_recipe(str(tmp_path / "recipe.yaml"), ["data.sources=[{path: a, proportion: -1}]"])
    with pytest.raises(UserError, match="all proportions are 0 at step 7; a step needs a source to read"):
        load_recipe(str(tmp_path / "recipe.yaml"), ["data.sources=[{path: a, proportion: [[0, 1], [7, 0]]}]"])
