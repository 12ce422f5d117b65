"""Reports of one or more measured runs: JSON, Markdown with a plot, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Measurement
from sleeptrain.evaluate.table import print_table

NONE = "–"
"""Cell of a value that does not exist."""
COLUMNS = ("run", "N trained", "N", "tokens", "seconds", "loss", "residual", "state norm", "retention")
"""Columns before those of the label values."""


@dataclass(frozen=True)
class RunResult:
    """Measurements of one run at one step, for one or more numbers of passes."""

    name: str
    run: str
    """Path of the run folder."""
    step: int
    tokens: int
    """Tokens trained on."""
    seconds: float | None
    """Total time of the training steps; None if the run has no metrics."""
    trained_passes: int
    measured: Sequence[Measurement]


def to_json(
    results: Sequence[RunResult], manifest: Manifest, environment: dict[str, Any], command: str
) -> dict[str, Any]:
    """All measurements, with the data, the versions and the command that they come from."""
    return {
        "task": manifest.task, "label": manifest.label, "baselines": manifest.baselines, "data": manifest.hash,
        "command": command, "environment": environment,
        "runs": [
            {
                "name": r.name, "run": r.run, "step": r.step, "tokens": r.tokens, "seconds": r.seconds,
                "trained_passes": r.trained_passes, "measured": [_measurement_json(m) for m in r.measured],
            }
            for r in results
        ],
    }  # fmt: skip


def _measurement_json(m: Measurement) -> dict[str, Any]:
    return {
        "passes": m.passes, "samples": m.samples, "loss": m.loss, "targets": m.targets, "residual": m.residual,
        "state_norm": m.state_norm, "retention": m.retention, "retention_by_head": m.retention_by_head,
        "by_value": {str(value): tally.summary() for value, tally in sorted(m.by_value.items())},
    }  # fmt: skip


def table_rows(results: Sequence[RunResult], manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: baselines first, then accuracy with its 95 % interval for each label value."""
    values = _label_values(results)
    header = [
        *COLUMNS,
        *(f"{manifest.label}={v}" if manifest.label else "accuracy" for v in values),
        *(f"{manifest.label}={v} exact" for v in values if manifest.label),
    ]
    baselines = [
        _baseline_row(manifest, values, kind, exact)
        for kind, exact in (("chance", "exact_chance"), ("majority", "exact_majority"))
    ]
    rows = [row for row in baselines if any(cell != NONE for cell in row[len(COLUMNS) :])]
    for r in results:
        for m in r.measured:
            row = [
                r.name, str(r.trained_passes), str(m.passes), f"{r.tokens:,}", _number(r.seconds, "{:.0f}"), f"{m.loss:.4f}",
                _number(m.residual, "{:.3f}"), f"{m.state_norm:.3g}", _number(m.retention, "{:.2g}"),
            ]  # fmt: skip
            summaries = [m.by_value[v].summary() if v in m.by_value else None for v in values]
            row += [_interval(summary, "accuracy", "interval") for summary in summaries]
            if manifest.label:
                row += [_interval(summary, "exact", "exact_interval") for summary in summaries]
            rows.append(row)
    return header, rows


def _label_values(results: Sequence[RunResult]) -> list[int]:
    """All label values that were measured, in ascending order."""
    return sorted({value for r in results for m in r.measured for value in m.by_value})


def _baseline_row(manifest: Manifest, values: Sequence[int], kind: str, exact: str) -> list[str]:
    tables = [manifest.baselines.get(str(v), {}) for v in values]
    cells = [_number(t.get(kind), "{:.3f}") for t in tables]
    cells += [_number(t.get(exact), "{:.3g}") for t in tables] if manifest.label else []
    return [f"({kind})", *[NONE] * (len(COLUMNS) - 1), *cells]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _interval(summary: dict[str, Any] | None, share: str, interval: str) -> str:
    if summary is None or summary[share] is None:
        return NONE
    low, high = summary[interval]
    return f"{summary[share]:.3f} [{low:.3f}, {high:.3f}]"


def compare(results: Sequence[RunResult], manifest: Manifest) -> list[str]:
    """One line for each pair of runs trained with different numbers of passes: cost, and label values with separate intervals.

    Runs are compared at the number of passes they were trained with. The line states the ratios of both tokens and time,
    because a comparison at equal tokens and one at equal time answer different questions.
    """
    lines = []
    pairs = [(a, b) for a in results for b in results if a.trained_passes > b.trained_passes]
    for more, fewer in pairs:
        high, low = (next((m for m in r.measured if m.passes == r.trained_passes), None) for r in (more, fewer))
        if high is None or low is None:
            continue
        groups: dict[str, list[str]] = {"ahead": [], "behind": [], "not separated": []}
        for value in sorted(high.by_value.keys() & low.by_value.keys()):
            a, b = high.by_value[value].summary()["interval"], low.by_value[value].summary()["interval"]
            groups["ahead" if a[0] > b[1] else "behind" if b[0] > a[1] else "not separated"].append(str(value))
        cost = f"{more.tokens / max(1, fewer.tokens):.2f} times the tokens"
        if more.seconds and fewer.seconds:
            cost += f" and {more.seconds / fewer.seconds:.2f} times the time"
        label = manifest.label or "value"
        outcome = "; ".join(f"{group} at {label} = {', '.join(values)}" for group, values in groups.items() if values)
        lines.append(
            f"{more.name} (N={more.trained_passes}) with {cost} of {fewer.name} (N={fewer.trained_passes}): {outcome}."
        )
    return lines


def markdown(results: Sequence[RunResult], manifest: Manifest, plot: str | None = None) -> str:
    """The table, the definitions of its columns, the comparisons, and an image named `plot`."""
    header, rows = table_rows(results, manifest)
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    notes = (
        "Accuracy is per answer token, `exact` per whole answer. Brackets are 95 % intervals (Wilson) over the evaluated "
        "samples of one training seed. `N trained` is the number of passes in training, `N` that in evaluation. Retention "
        "is the share of what the first pass over the first window wrote to the fast weights that decay leaves at the "
        "start of the last window, for the best head. Residual is the relative change of the features from one pass to "
        "the next."
    )
    comparisons = [f"- {line}" for line in compare(results, manifest)]
    image = [f"\n![accuracy]({plot})"] if plot else []
    return "\n".join([*table, "", notes, "", *comparisons, *image, ""])


def print_report(results: Sequence[RunResult], manifest: Manifest) -> None:
    """Print the table transposed, with a column for each run and number of passes, and the comparisons."""
    header, rows = table_rows(results, manifest)
    columns = ["", *(f"{row[0]}  N={row[2]}" if row[2] != NONE else row[0] for row in rows)]
    lines = [[name, *(row[i] for row in rows)] for i, name in enumerate(header) if i > 0]
    lines = [line for line in lines if any(cell != NONE for cell in line[1:])]
    print_table(columns, lines, title=f"{manifest.task}: {len(results)} run(s)", numbers=True)
    for comparison in compare(results, manifest):
        print(comparison)


def plot_accuracy(results: Sequence[RunResult], manifest: Manifest, path: Path) -> bool:
    """Plot accuracy over label values for each run and number of passes; false, without a file, if there is no label."""
    values = _label_values(results)
    if manifest.label is None or not values:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for r in results:
        for m in r.measured:
            positions = [i for i, value in enumerate(values) if value in m.by_value]
            summaries = [m.by_value[values[i]].summary() for i in positions]
            accuracy: list[Any] = [summary["accuracy"] for summary in summaries]
            below = [summary["accuracy"] - summary["interval"][0] for summary in summaries]
            above = [summary["interval"][1] - summary["accuracy"] for summary in summaries]
            label = f"{r.name}, N={m.passes}"
            axes.errorbar(positions, accuracy, yerr=[below, above], marker="o", capsize=3, label=label)
    majority = [manifest.baselines.get(str(v), {}).get("majority") for v in values]
    if all(x is not None for x in majority):
        axes.plot(range(len(values)), majority, "k--", lw=1, label="majority")  # type: ignore[arg-type]
    axes.set_xticks(range(len(values)), [str(v) for v in values])
    axes.set(
        xlabel=manifest.labels.get(manifest.label, manifest.label),
        ylabel="accuracy per answer token",
        title=manifest.task,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def write(
    results: Sequence[RunResult], manifest: Manifest, out: Path, environment: dict[str, Any], command: str
) -> list[Path]:
    """Write report.json, report.md and, if there is a label, accuracy.png to the folder `out`; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    image = out / "accuracy.png"
    plotted = plot_accuracy(results, manifest, image)
    (out / "report.json").write_text(json.dumps(to_json(results, manifest, environment, command), indent=1))
    (out / "report.md").write_text(
        f"# {manifest.task}\n\n`{command}`\n\n" + markdown(results, manifest, image.name if plotted else None)
    )
    return [out / "report.json", out / "report.md", *([image] if plotted else [])]
