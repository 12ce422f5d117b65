"""What the data decides about a recipe: windows of text that would not sleep."""

import pytest

from sleep_data.text import Text
from sleep_data.text_build import build
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.recipe.completion import complete
from sleeptrain.recipe.recipe import load_recipe


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ((), "the last window of a row never sleeps, so passes = 2 would change nothing"),
        (("data.lane=128",), "the later passes over the last window of a lane's row have no gradient, so nothing would learn to sleep"),
    ],
)  # fmt: skip
def test_rows_of_text_that_are_one_window_name_the_key_that_makes_them_longer(tmp_path, changes, reason):
    (tmp_path / "a.txt").write_text("text " * 100)
    body = build(Text(paths=(str(tmp_path / "a.txt"),)), tmp_path / "text", {"train": None, "test": None})
    resolved = load_recipe("text-small", ["sleep.window=32", "data.row=32", "sleep.passes=2", *changes])
    manifest = Manifest.from_json(body).cut(32, 32)
    with pytest.raises(UserError) as error:
        complete(resolved, manifest)
    assert str(error.value).endswith(
        f"rows of runs/data/text are one window (data.row = 32), and {reason}; set data.row to several windows, or sleep.passes=1"
    )
    assert complete(
        load_recipe("text-small", ["sleep.window=32", "data.row=64", *changes]), Manifest.from_json(body).cut(32, 64)
    )
