"""What evaluation reads of a run besides its weights."""

import gc
import json
import weakref
from types import SimpleNamespace

import pytest

from sleeptrain.errors import UserError
from sleeptrain.evaluate import runs
from sleeptrain.evaluate.measure import Measurement
from sleeptrain.evaluate.runs import _result, evaluate
from sleeptrain.recipe import load_recipe
from tests.cli.runs import untrained
from tests.train.jobs import text_data


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"step": 1, "seconds": 1.5}, {"step": 2, "seconds": 2.0}, {"step": 3, "seconds": 9.0}], 3.5),
        ([{"step": 1, "seconds": 1.5}], None),
        ([{"step": 1, "seconds": 1.5}, {"step": 2}], None),
        ([], None),
    ],
)
def test_the_time_of_a_run_is_unknown_where_a_row_of_its_metrics_was_lost(tmp_path, rows, expected):
    """Rows after the step that is evaluated do not count."""
    lines = [json.dumps({**row, "tokens": 36 * row["step"]}) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    manifest = SimpleNamespace(hash="d", length=36)
    trained = SimpleNamespace(run=tmp_path, step=2, recipe=load_recipe("rule110-tiny").value, manifest=manifest)
    assert _result(trained, "a", manifest, []).seconds == expected


def test_one_model_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """And a run whose weights do not fit is found before the first one is measured."""
    data = text_data(tmp_path)
    for name, width in (("a", 32), ("b", 32), ("c", 32)):
        untrained(tmp_path, name, data, "sleep.window=16", "sleep.passes=1", f"model.width={width}")
    models, alive = list[weakref.ref](), list[int]()

    def measure(model, *args):
        models.append(weakref.ref(model))
        gc.collect()
        alive.append(sum(each() is not None for each in models))
        return Measurement(1)

    monkeypatch.setattr(runs, "measure", measure)
    evaluate([str(tmp_path / name) for name in "abc"], [1, 2], None, 4, 1, quiet=True)
    assert alive == [1, 2, 1, 2, 1, 2], "the model of a run, once for each number of passes"
    config = tmp_path / "c" / "config.yaml"
    config.write_text(config.read_text().replace("width: 32", "width: 64"))
    models.clear()
    with pytest.raises(UserError, match="does not fit"):
        evaluate([str(tmp_path / name) for name in "abc"], [1], None, 4, 1, quiet=True)
    assert not models
