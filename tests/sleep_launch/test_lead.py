"""The lead before a time limit, from what a run has measured."""

from __future__ import annotations

import json
from pathlib import Path

from sleep_launch.lead import lead_seconds


def test_the_lead_is_twice_the_longest_step_and_save_and_a_minute(tmp_path: Path) -> None:
    """A step with an evaluation takes that long, too; a last line that was cut off does not count."""
    assert lead_seconds(tmp_path) == 0
    rows = [
        {"seconds": 4.0, "save_seconds": None},
        {"seconds": 3.0, "eval_seconds": 7.0, "save_seconds": 90.0},
        {"seconds": 5.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"seconds": 1e')
    assert lead_seconds(tmp_path) == 2 * (10 + 90) + 60
