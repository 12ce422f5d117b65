"""What evaluation reads of a run besides its weights."""

import json
from types import SimpleNamespace

import pytest

from sleeptrain.evaluate.runs import _result
from sleeptrain.recipe import load_recipe


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
