"""The plot of an evaluation: accuracy by label, with intervals, for each recipe and number of passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.line_styles import DASHES, INKS, MARKERS
from sleeptrain.evaluate.seeds import RunResult, SeedGroup, group_by_recipe, label_values, summary

WIDTH = 0.16
"""Part of the distance of two labels within which the intervals of all lines stand beside each other."""


def plot_accuracy(results: Sequence[RunResult], manifest: Manifest, path: Path) -> bool:
    """Plot accuracy over label values for each recipe and number of passes; false, without a file, if there is no label."""
    groups = group_by_recipe(results)
    values = label_values(groups)
    if manifest.label is None or not values:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    lines = [(group, passes, measured) for group in groups for passes, measured in group.by_passes()]
    for number, line in enumerate(lines):
        _draw_errors(axes, line, values, number, WIDTH * (number - (len(lines) - 1) / 2) / max(1, len(lines) - 1))
    guessed = [manifest.baselines.get(str(v), {}).get("majority") for v in values]
    majority = [share for share in guessed if share is not None]
    if len(majority) == len(values):
        axes.plot(
            range(len(values)), majority, "k", ls=(0, (1, 2)), lw=1, label="always the most frequent answer token"
        )
    axes.set_xticks(range(len(values)), [str(v) for v in values])
    axes.set(
        xlabel=manifest.labels.get(manifest.label, manifest.label),
        ylabel="accuracy (share of answer tokens)",
        title=f"{manifest.task}: accuracy on held-out samples, bars: 95 % intervals",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    return True


def _draw_errors(
    axes: Any, line: tuple[SeedGroup, int, Sequence[Any]], values: Sequence[int], number: int, shift: float
) -> None:
    """One line with error bars, `shift` to the right of the labels."""
    group, passes, measured = line
    found = [(i, summary(measured, value, "accuracy")) for i, value in enumerate(values)]
    shown = [(i, one, one.interval or (one.mean, one.mean)) for i, one in found if one]
    below = [max(0.0, one.mean - low) for _, one, (low, _) in shown]
    above = [max(0.0, high - one.mean) for _, one, (_, high) in shown]
    count = f"{len(group.runs)} seeds" if len(group.runs) > 1 else "one seed"
    axes.errorbar(
        [i + shift for i, *_ in shown], [one.mean for _, one, _ in shown], yerr=[below, above], capsize=3, lw=1.3, markersize=5,
        color=INKS[number % len(INKS)], ls=DASHES[number % len(DASHES)], marker=MARKERS[number % len(MARKERS)],
        label=f"{group.name}, N={passes}, {count}",
    )  # fmt: skip
