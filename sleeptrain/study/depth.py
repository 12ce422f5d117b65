"""Accuracy by the label of a task, such as the number of transitions, over the seeds of each setting, beside the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sleeptrain.evaluate.intervals import Interval, mean_interval
from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.page import NONE, PageSection, TextTable, estimate, number
from sleeptrain.study.results import Setting

SHARES = {"accuracy": "accuracy per answer token", "exact": "share of answers that are right throughout"}
BASELINES = {"accuracy": ("chance", "majority"), "exact": ("exact_chance", "exact_majority")}
DEPTH_NOTE = (
    "Means over the seeds with 95 % intervals over them (Student's t). N is the number of passes in evaluation; runs of other numbers "
    "than that of training are marked with *. Chance guesses uniformly; majority always gives the most frequent answer of the data."
)


@dataclass(frozen=True)
class DepthLine:
    """The accuracies of one setting at one number of passes, by value of the label."""

    name: str
    shares: Mapping[str, Mapping[int, Sequence[float]]]
    """For `accuracy` and `exact` the share of every seed, by value."""

    def mean(self, share: str, value: int) -> float | None:
        """The mean over the seeds; None where it was not measured."""
        values = self.shares[share].get(value)
        return float(np.mean(values)) if values else None

    def interval(self, share: str, value: int) -> Interval | None:
        """95 % interval of the mean over the seeds, within 0 and 1."""
        found = mean_interval(self.shares[share].get(value, []))
        return (max(0.0, found[0]), min(1.0, found[1])) if found else None


def depth_lines(settings: Sequence[Setting]) -> list[DepthLine]:
    """The lines of all settings; settings that differ in an axis which decides the label of the data are one line."""
    axis = _depth_axis(settings)
    lines: dict[str, dict[str, dict[int, Sequence[float]]]] = {}
    for setting in settings:
        runs = [run for run in setting.runs if run.measured]
        if not runs:
            continue
        own = runs[0].passes
        name = Setting({a: label for a, label in setting.labels.items() if a != axis}, setting.runs).name
        name += f" ({len(runs)} of {len(setting.runs)} seeds)" if len(runs) < len(setting.runs) else ""
        for passes in dict.fromkeys(int(m["passes"]) for m in runs[0].measurements()):
            shares = lines.setdefault(
                f"{name}: N={passes}{'' if passes == own else '*'}", {share: {} for share in SHARES}
            )
            for share in SHARES:
                tables = [run.shares(share, passes) for run in runs]
                for value in tables[0]:
                    if all(value in table for table in tables):
                        shares[share][value] = [table[value] for table in tables]
    return [DepthLine(name, shares) for name, shares in lines.items()]


def _depth_axis(settings: Sequence[Setting]) -> str | None:
    """The first axis whose values have data of different labels, such as one of data sets with one depth each."""
    for axis in settings[0].labels if settings else ():
        values = {label: set[int]() for label in (s.labels[axis] for s in settings)}
        for setting in settings:
            values[setting.labels[axis]] |= {value for run in setting.runs for value in run.shares("accuracy")}
        together = [value for found in values.values() for value in found]
        if len(values) > 1 and together and len(together) == len(set(together)):
            return axis
    return None


def depth_sections(settings: Sequence[Setting]) -> list[PageSection]:
    """A table and a chart for accuracy and for exact answers; nothing where the task has no labels or nothing was measured."""
    lines = depth_lines(settings)
    reports = [run.measured for s in settings for run in s.runs if run.measured and run.measured.get("label")]
    if not reports or not lines:
        return []
    label = str(reports[0]["label"])
    baselines = _common_baselines([report["baselines"] for report in reports])
    values = sorted({value for line in lines for value in line.shares["accuracy"]})
    sections = []
    for share, title in SHARES.items():
        known = {
            name: [baselines.get(str(value), {}).get(key) for value in values]
            for name, key in zip(("chance", "majority"), BASELINES[share], strict=True)
        }
        rows = [
            [f"({name})", *(number(cell, "{:.3f}") for cell in cells)] for name, cells in known.items() if _some(cells)
        ]
        rows += [[line.name, *_cells(line, share, values)] for line in lines]
        table = TextTable([f"{share} at {label} =", *map(str, values)], rows)
        marks = list(_marks(lines, share, values))
        marks += [
            Line(n, list(range(len(values))), cells, style="baseline") for n, cells in known.items() if _some(cells)
        ]
        ticks = [(float(place), str(value)) for place, value in enumerate(values)]
        chart = Chart(
            f"Rate of right answers by {label}: {share}", f"{label} (label of the task)", title, marks, ticks=ticks
        )
        # Of one value the table shows all that a chart could.
        charts = [chart] if len(values) > 1 else []
        sections.append(PageSection(f"{share.capitalize()} by {label}", [table, DEPTH_NOTE, *charts]))
    return sections


def _common_baselines(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The baselines by value of the label, of those that all data sets with this value have alike."""
    found: dict[str, dict[str, float]] = {}
    for value in dict.fromkeys(value for table in tables for value in table):
        first, *others = [table[value] for table in tables if value in table]
        found[value] = {name: share for name, share in first.items() if all(o.get(name) == share for o in others)}
    return found


def _some(cells: Sequence[float | None]) -> bool:
    return any(cell is not None for cell in cells)


def _cells(line: DepthLine, share: str, values: Sequence[int]) -> Iterator[str]:
    for value in values:
        mean = line.mean(share, value)
        yield NONE if mean is None else estimate(mean, line.interval(share, value), "{:.3f}")


def _marks(lines: Sequence[DepthLine], share: str, values: Sequence[int]) -> Iterator[Line]:
    for line in lines:
        found = [
            (float(place), line.mean(share, value), line.interval(share, value)) for place, value in enumerate(values)
        ]
        shown = [(x, y, interval) for x, y, interval in found if y is not None]
        if shown:
            yield Line(
                line.name, [x for x, _, _ in shown], [y for _, y, _ in shown], [i for _, _, i in shown], style="marks"
            )
