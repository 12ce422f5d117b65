"""How long before a time limit a run must be asked to stop, from what it has measured."""

from __future__ import annotations

import json
from pathlib import Path

SHARE = 2.0
"""The lead is this many times the longest step and the longest save that were measured, and the margin."""
MARGIN_S = 60.0
"""SLURM sends the signal up to a minute late."""
READ = 1000
"""Newest steps that are looked at."""


def lead_seconds(run: Path) -> int:
    """Seconds that the newest steps of a run have needed for a step and a save, with a margin; 0 for a run that has made none."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines()[-READ:] if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a run that was killed
    if not rows:
        return 0
    step = max(float(row.get("seconds", 0.0)) + float(row.get("eval_seconds", 0.0)) for row in rows)
    save = max(float(row.get("save_seconds") or 0.0) for row in rows)
    return round(SHARE * (step + save) + MARGIN_S)
