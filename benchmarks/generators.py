"""Tokens that the tasks generate in a second of CPU time on one core, padding included, for each split."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from figures import Figure, part

from sleep_data.recall_kinds import KINDS
from sleep_data.task import SPLITS, Task
from sleep_data.tasks import make

TARGETS = {"rule110": 1e6, "depo": 3e5}
"""Least tokens a second."""
SAMPLES = {"rule110": 8192, "depo": 2048, "copy": 2048}
"""Samples of a measurement, 128 for other tasks."""


def tasks() -> Mapping[str, Task]:
    """All generated tasks at their default sizes, recall with every kind."""
    named: dict[str, Task] = {name: make(name, {}) for name in ("rule110", "depo", "copy", "state", "word_problems")}
    recall = {kind: make("recall", {"kind": kind, "sizes": 1 if kind == "single" else 3}) for kind in KINDS}
    return named | {f"recall, {kind}": task for kind, task in recall.items()}


def figures(quick: bool) -> list[Figure]:
    """The median of some measurements of every task and split."""
    found = []
    for name, task in tasks().items():
        for split in SPLITS:
            samples = 16 if quick else SAMPLES.get(name, 128)
            rates = [_rate(task, split, samples) for _ in range(1 if quick else 3)]
            found.append(Figure(f"{name}: {split}", statistics.median(rates), "tokens/s", at_least=TARGETS.get(name)))
    return found


def _rate(task: Task, split: str, samples: int) -> float:
    """Tokens a second of CPU time."""
    began = time.process_time()
    tokens = sum(block["tokens"].size for block in task.blocks(split, samples, 0))
    return tokens / (time.process_time() - began)


if __name__ == "__main__":
    part(figures, __doc__, ["numpy"])
