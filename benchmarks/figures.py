"""What all benchmarks share: a figure with its target, paired timing, and the command line of a part."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number. `at_least` or `at_most` is its target; without either it is only reported."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


Measure = Callable[[bool], Sequence[Figure]]
"""Takes `quick` and returns the figures of a part."""


def part(measure: Measure, description: str, packages: Sequence[str]) -> None:
    """The main of a part: `--quick` for few rounds at small sizes, `--json FILE` for what `cpu.py` puts together."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds at small sizes: does it run?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write figures and versions there")
    arguments = parser.parse_args()
    load, began = os.getloadavg()[0], time.perf_counter()
    found = measure(arguments.quick)
    if arguments.quick:  # targets are for the sizes of a full run
        found = [replace(figure, at_least=None, at_most=None) for figure in found]
    body: dict[str, Any] = {
        "figures": [asdict(figure) | {"met": figure.met} for figure in found],
        "versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages},
        "load_average": [load, os.getloadavg()[0]],
        "seconds": round(time.perf_counter() - began, 1),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(body))
    else:
        print(table(body["figures"]))


def table(figures: Sequence[dict[str, Any]]) -> str:
    """Figures as lines, the target beside each."""
    lines = []
    for f in figures:
        target = (
            "" if f["met"] is None else f">= {f['at_least']:g}" if f["at_most"] is None else f"<= {f['at_most']:.4g}"
        )
        verdict = {True: "met", False: "MISSED", None: ""}[f["met"]]
        lines.append(f"{f['name']:62}{f['value']:10.3f} {f['unit']:14}{target:12}{verdict}".rstrip())
    return "\n".join(lines)


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each run returned in each round; a round makes all of them one after the other, so that what slows one slows all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run())
    return times


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
