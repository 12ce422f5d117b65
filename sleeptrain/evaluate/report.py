"""Reports of one or more measured runs: JSON, Markdown with a plot, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.compare import compare
from sleeptrain.evaluate.measure import Measurement
from sleeptrain.evaluate.plot import plot_accuracy
from sleeptrain.evaluate.seeds import SHARES, RunResult, SeedGroup, group_by_recipe, label_values, mean_of, summary
from sleeptrain.evaluate.table import print_table
from sleeptrain.train.log import finite

NONE = "–"
"""Cell of a value that does not exist."""
COLUMNS = (
    "run",
    "seeds",
    "N trained",
    "N",
    "horizon",
    "tokens",
    "seconds",
    "loss",
    "residual",
    "state norm",
    "retention",
)
"""Columns before those of the label values."""
NOTES = (
    "Accuracy is per answer token, `exact` per whole answer. Brackets are 95 % intervals over distinct problems (Wilson); with "
    "several seeds they contain that over seeds (Student's t), too, and the smallest and the largest seed follow. Verdicts are on "
    "accuracy. "
    "`N trained` is the number of passes in training, `N` that in evaluation. `horizon` is the half-life of the slowest heads at "
    "initialisation, in tokens over all passes. Retention is the share of what the first pass over the first window wrote to "
    "the fast weights that decay leaves at the start of the last window, for the best head. Residual is the relative change of "
    "the features from one pass to the next."
)


def to_json(
    results: Sequence[RunResult], manifest: Manifest, environment: dict[str, Any], command: str
) -> dict[str, Any]:
    """All measurements, with the data, the versions and the command that they come from; null for what is not finite."""
    groups = group_by_recipe(results)
    return finite({
        "task": manifest.task, "label": manifest.label, "baselines": manifest.baselines, "data": manifest.hash,
        "command": command, "environment": environment,
        "runs": [
            {
                "name": r.name, "run": r.run, "seed": r.seed, "step": r.step, "tokens": r.tokens, "seconds": r.seconds,
                "trained_passes": r.trained_passes, "horizon": r.recipe.model.deltanet.horizon,
                "measured": [_measurement_json(m) for m in r.measured],
            }
            for r in results
        ],
        "groups": [
            {"name": group.name, "seeds": group.seeds, "measured": list(_group_json(group))}
            for group in groups
        ],
        "comparisons": compare(groups, manifest),
    })  # fmt: skip


def _measurement_json(m: Measurement) -> dict[str, Any]:
    return {
        "passes": m.passes, "samples": m.samples, "loss": m.loss, "targets": m.targets, "residual": m.residual,
        "state_norm": m.state_norm, "retention": m.retention, "retention_by_head": m.retention_by_head,
        "by_source": {name: {"loss": m.source_loss(name), "accuracy": m.source_accuracy(name)} for name in m.by_source},
        "by_value": {str(value): tally.summary() for value, tally in sorted(m.by_value.items())},
    }  # fmt: skip


def _group_json(group: SeedGroup) -> Iterator[dict[str, Any]]:
    """Mean and interval over the seeds for each number of passes and label value."""
    for passes, measured in group.by_passes():
        by_value: dict[str, dict[str, Any]] = {}
        for value in sorted(measured[0].by_value):
            shares = {share: summary(measured, value, share) for share in SHARES}
            by_value[str(value)] = {
                name: {"values": list(s.values), "mean": s.mean, "interval": s.interval}
                for name, s in shares.items()
                if s
            }
        yield {"passes": passes, "by_value": by_value}


def table_rows(groups: Sequence[SeedGroup], manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: baselines first, then accuracy with its 95 % interval for each label value."""
    values, names = label_values(groups), _source_names(groups)
    header = [
        *COLUMNS,
        *(f"loss of {name}" for name in names),
        *(f"{manifest.label}={v}" if manifest.label else "accuracy" for v in values),
        *(f"{manifest.label}={v} exact" for v in values if manifest.label),
    ]
    baselines = [
        _baseline_row(manifest, values, kind, exact, len(names))
        for kind, exact in (("chance", "exact_chance"), ("majority", "exact_majority"))
    ]
    rows = [row for row in baselines if any(cell != NONE for cell in row[len(COLUMNS) + len(names) :])]
    for group in groups:
        for passes, measured in group.by_passes():
            loss, residual, norm, retention = (
                mean_of(measured, attrgetter(name)) for name in ("loss", "residual", "state_norm", "retention")
            )
            row = [
                group.name, str(len(group.runs)), str(group.first.trained_passes), str(passes), str(group.horizon or NONE),
                f"{group.first.tokens:,}", _number(group.seconds, "{:.0f}"), _number(loss, "{:.4f}"),
                _number(residual, "{:.3f}"), _number(norm, "{:.3g}"), _number(retention, "{:.2g}"),
            ]  # fmt: skip
            row += [_number(mean_of(measured, methodcaller("source_loss", name)), "{:.4f}") for name in names]
            for share in SHARES if manifest.label else ("accuracy",):
                row += [str(summary(measured, value, share) or NONE) for value in values]
            rows.append(row)
    return header, rows


def _source_names(groups: Sequence[SeedGroup]) -> list[str]:
    """The names of the sources that were measured, in their order."""
    return list(dict.fromkeys(name for group in groups for r in group.runs for m in r.measured for name in m.by_source))


def _baseline_row(manifest: Manifest, values: Sequence[int], kind: str, exact: str, sources: int) -> list[str]:
    tables = [manifest.baselines.get(str(v), {}) for v in values]
    cells = [_number(t.get(kind), "{:.3f}") for t in tables]
    cells += [_number(t.get(exact), "{:.3g}") for t in tables] if manifest.label else []
    return [f"({kind})", *[NONE] * (len(COLUMNS) - 1 + sources), *cells]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def markdown(results: Sequence[RunResult], manifest: Manifest, plot: str | None = None) -> str:
    """The table, the definitions of its columns, the comparisons, and an image named `plot`."""
    groups = group_by_recipe(results)
    header, rows = table_rows(groups, manifest)
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    comparisons = [f"- {line}" for line in compare(groups, manifest)]
    image = [f"\n![accuracy]({plot})"] if plot else []
    return "\n".join([*table, "", NOTES, "", *comparisons, *image, ""])


def print_report(results: Sequence[RunResult], manifest: Manifest) -> None:
    """Print the table transposed, with a column for each recipe and number of passes, and the comparisons."""
    groups = group_by_recipe(results)
    header, rows = table_rows(groups, manifest)
    passes = COLUMNS.index("N")
    columns = ["", *(f"{row[0]}  N={row[passes]}" if row[passes] != NONE else row[0] for row in rows)]
    lines = [[name, *(row[i] for row in rows)] for i, name in enumerate(header) if i > 0]
    lines = [line for line in lines if any(cell != NONE for cell in line[1:])]
    print_table(columns, lines, title=f"{manifest.task}: {len(results)} run(s)", numbers=True)
    if any(len(group.runs) == 1 for group in groups):
        print(
            "Intervals of a single seed are over distinct problems; they do not show how much another seed would differ."
        )
    if manifest.label:
        print(f"{manifest.label}: {manifest.labels.get(manifest.label, 'label of the task')}.")
    print(
        "Loss: nats per target. Brackets: 95 % intervals. N: passes over a window. All rows are explained in docs/concepts.md and by --out DIR."
    )
    for comparison in compare(groups, manifest):
        print(comparison)


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
