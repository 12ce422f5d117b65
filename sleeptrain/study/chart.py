"""Charts as SVG: lines with intervals, told apart by colour, dashes and markers, so that they can be read in grey."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sleeptrain.evaluate.line_styles import DASHES, INKS, MARKERS

BASELINES = ((1, 2), (6, 2, 1, 2), (10, 3))
"""Lengths of dashes and gaps in points."""
POINTS = 300
"""Points of a line; longer lines are thinned to the means of as many groups of neighbours."""
LEGEND = 14
"""Entries of a legend at most; the tables name every line."""
TICK_CHARACTERS, SHORTEST = 70, 8
"""Characters that fit side by side below the x axis, and the least width at which the text of a place is broken into lines."""


@dataclass(frozen=True)
class Line:
    """One line of a chart. Points whose y is None or not finite are left out."""

    label: str
    """What the legend says; empty for a line that is alone."""
    x: Sequence[float]
    y: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] | None = None
    """The interval of every y, drawn as an error bar."""
    style: Literal["line", "marks", "points", "baseline"] = "line"
    """`marks`: with a marker on every point. `points`: markers alone, where nothing lies between. `baseline`: thin, black, with dashes of
    its own."""


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes. Labels of axes name the unit."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[tuple[float, str]] = field(default=())
    """Places on the x axis and what is written there; empty: numbers."""


def thinned(line: Line) -> tuple[list[float], list[float]]:
    """The finite points of a line, or the means of POINTS groups of neighbours where there are more."""
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y)]
    size = math.ceil(len(pairs) / POINTS)
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size or 1)]
    means = [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
    return [x for x, _ in means], [y for _, y in means]


def draw_svg(chart: Chart) -> str:
    """The chart as an SVG element. The same chart gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    # Texts stay texts; identifiers are hashes, which are random without a salt.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9}):
        figure = Figure(figsize=(6.8, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(chart.lines):
            _draw_line(axes, line, number)
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
        axes.set_xscale("log" if chart.log_x else "linear")
        axes.set_yscale("log" if chart.log_y else "linear")
        for axis, is_log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y)):
            if is_log:
                _label_log_ticks(axis)
        if chart.ticks:
            width = max(SHORTEST, TICK_CHARACTERS // len(chart.ticks))
            texts = [textwrap.fill(text, width, break_long_words=False) for _, text in chart.ticks]
            axes.set_xticks([at for at, _ in chart.ticks], texts)
            axes.minorticks_off()
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            more = f"and {len(labels) - LEGEND} more, named in the tables" if len(labels) > LEGEND else None
            axes.legend(handles[:LEGEND], labels[:LEGEND], fontsize=7, title=more, title_fontsize=7)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )  # fmt: skip
    # What stands before the element, the XML declaration and a document type with an address, has no place in HTML.
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)


def _label_log_ticks(axis: Any) -> None:
    """Labels at 1, 2 and 5 times the powers of ten where a logarithmic axis has few decades; it would label powers of ten alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if 0 < low < high < low * 1000:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def _draw_line(axes: Any, line: Line, number: int) -> None:
    if line.style == "baseline":
        dashes = BASELINES[number % len(BASELINES)]
        axes.plot(*thinned(line), color="black", linestyle=(0, dashes), linewidth=1, label=line.label)
        return
    look = {
        "color": INKS[number % len(INKS)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.3, "label": line.label,
    }  # fmt: skip
    if line.style in ("marks", "points"):
        look |= {
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "markerfacecolor": "none",
        }  # open: equal lines show all
    if line.style == "points":
        look["linestyle"] = "none"
    if line.intervals is None:
        axes.plot(*thinned(line), **look)
        return
    kept = [
        (x, y, interval or (y, y))
        for x, y, interval in zip(line.x, line.y, line.intervals, strict=True)
        if y is not None
    ]
    spread = [[max(0.0, y - low) for _, y, (low, _) in kept], [max(0.0, high - y) for _, y, (_, high) in kept]]
    axes.errorbar([x for x, _, _ in kept], [y for _, y, _ in kept], yerr=spread, capsize=3, **look)
