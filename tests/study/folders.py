"""Run folders as trainings leave them, written without training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECIPE = "train: {steps: 10}\ndata: {sources: [{path: data}]}\n"


def row(step: int, **values: Any) -> dict[str, Any]:
    """A row of metrics: 100 tokens, two seconds and 500 FLOPs a second in every step."""
    return {
        "step": step, "tokens": 100 * step, "loss": 4.0 / step, "grad_norm": 1.5, "lr": 0.01, "passes": 2, "seconds": 2.0,
        "flops_per_second": 500.0, "loss_by_window": [None, 4.0 / step],
    } | values  # fmt: skip


def write_run(
    folder: Path, rows: Iterable[Mapping[str, Any]], config: str = RECIPE, state: str | None = "done", tail: str = ""
) -> Path:
    """A run folder with these rows, configuration and outcome; `tail` follows the rows."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + tail)
    (folder / "config.yaml").write_text(config)
    if state:
        (folder / "outcome.json").write_text(json.dumps({"state": state, "step": None, "job": None}))
    return folder
