"""Training speed of the bare command on a busy machine, relative to one thread.

As many processes as there are cores compute all the time. Beside them the same training runs alternately as a user starts it,
with the default number of threads, and with OMP_NUM_THREADS=1. The ratio is that of the median times of a step, in pairs.
`spinning`: waiting threads spin (OMP_WAIT_POLICY=ACTIVE). The command lets them sleep (`sleeptrain/cli/main.py`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Figure, part

from sleep_data.build import build_task
from sleeptrain.recipe.task_files import task_file

TARGET = 0.7
STEPS, WARMUP = 30, 5
MODES: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "bare": {},
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "INFINITY"},
}
"""Environment variables of each way to start the command."""


def seconds_a_step(folder: Path, mode: str, number: int, quick: bool) -> float:
    """The median time of a step of one training."""
    run = folder / f"{mode.replace(' ', '-')}-{number}"
    ours = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    words = [
        f"data.sources=[{{path: {folder / 'data'}}}]",
        f"run_dir={run}",
        f"train.steps={WARMUP + 3 if quick else STEPS}",
        "checkpoint.every=0",
    ]
    subprocess.run(
        [sys.executable, "-m", "sleeptrain", "train", "rule110-tiny", *words],
        env=clean | MODES[mode], check=True, capture_output=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["seconds"] for row in rows[WARMUP:])


def measure(quick: bool) -> list[Figure]:
    """Speed relative to one thread of every other way to start, on a machine whose cores are all busy."""
    cores, pairs = len(os.sched_getaffinity(0)), 1 if quick else 3
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build_task(task_file("rule110-tiny"), folder / "data")
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
        try:
            times = [{mode: seconds_a_step(folder, mode, number, quick) for mode in MODES} for number in range(pairs)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
    figures = []
    for mode in list(MODES)[1:]:
        ratios = [pair["one thread"] / pair[mode] for pair in times]
        detail = {"pairs": ratios, "cores": cores, "busy processes": cores}
        target = TARGET if mode == "bare" else None
        figures.append(
            Figure(f"{mode}: speed of one thread", statistics.median(ratios), "times", at_least=target, detail=detail)
        )
    return figures


if __name__ == "__main__":
    part(measure, __doc__ or "", ("sleeptrain", "torch"))
