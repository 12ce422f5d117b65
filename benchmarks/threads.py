"""Training speed of the bare command, which computes on one thread, relative to one thread for each core.

The same training runs alternately in both ways, on an idle machine and beside as many computing processes as there are cores.
The ratio is that of the mean times of a step, and of several pairs the median counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, part

from sleep_data.build import build_task
from sleeptrain.recipe.task_files import task_file

TARGET = 0.7
RECIPE, STEPS, WARMUP, PAIRS = "rule110-tiny", 100, 5, 3
CORES = len(os.sched_getaffinity(0))
MODES: dict[str, dict[str, str]] = {"bare": {}, "a thread a core": {"OMP_NUM_THREADS": str(CORES)}}
"""Environment variables of each way to start the command."""


def seconds_a_step(folder: Path, mode: str, steps: int) -> float:
    """The mean time of a step of one training."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        run = Path(made) / "run"
        words = [f"data.sources=[{{path: {folder / 'data'}}}]", f"run_dir={run}", f"train.steps={WARMUP + steps}"]
        subprocess.run(
            [sys.executable, "-m", "sleeptrain", "train", RECIPE, *words, "checkpoint.every=0"],
            env=clean | MODES[mode], check=True, capture_output=True,
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean(row["seconds"] for row in rows[WARMUP:])


@contextlib.contextmanager
def computing(processes: int) -> Iterator[None]:
    """Processes that compute all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(quick: bool) -> list[Figure]:
    """Speed relative to a thread a core, on an idle machine and, unless `quick`, on one whose cores are all busy."""
    steps, pairs = (3, 1) if quick else (STEPS, PAIRS)
    figures = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build_task(task_file(RECIPE), folder / "data")
        for machine, processes in (("idle", 0), ("busy", CORES))[: 1 if quick else 2]:
            with computing(processes):
                times = [{mode: seconds_a_step(folder, mode, steps) for mode in MODES} for _ in range(pairs)]
            ratios = [pair["a thread a core"] / pair["bare"] for pair in times]
            detail = {"pairs": ratios, "cores": CORES, "computing processes": processes, "recipe": RECIPE}
            name = f"{machine} machine: speed of a thread a core"
            figures.append(Figure(name, statistics.median(ratios), "times", at_least=TARGET, detail=detail))
    return figures


if __name__ == "__main__":
    part(measure, __doc__ or "", ("sleeptrain", "torch"))
