"""The report of any runs: curves of loss, learning rate and gradient norm, loss by window, results on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.run.folder import is_seed_folder, runs_of_seeds
from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.page import NONE, Page, PageSection, TextTable, number
from sleeptrain.study.run_log import RunLog, mean, read_run

CURVES = (
    ("loss", "Training loss", "loss (nats per target)", False),
    ("eval_loss", "Loss on held-out data", "loss (nats per target)", False),
    ("eval_accuracy", "Accuracy on held-out data", "accuracy (share of targets)", False),
    ("lr", "Learning rate", "learning rate (per step)", False),
    ("grad_norm", "Gradient norm before clipping", "norm (nats per target and unit of weights)", True),
)
"""By column of metrics.jsonl: title, label of the y axis, whether that is logarithmic."""
COLUMNS = (
    "run", "state", "N", "seed", "steps", "skipped", "tokens", "seconds", "training loss", "held-out loss", "best", "held-out accuracy",
)  # fmt: skip

NOTE = (
    "Training losses in the table are means over the last 5 % of the steps. Held-out values are those of the last and of the best "
    "evaluation while training (eval.every). Skipped steps are those whose gradient was not applied. Tokens are real ones, counted once whatever the number of passes; seconds are those "
    "of the training steps. Lines of many steps show means of neighbouring steps."
)


def read_runs(paths: Sequence[str]) -> tuple[list[RunLog], list[str]]:
    """The logs of run folders and of folders of several seeds, and a line for each that cannot be shown.

    Raises UserError where none can be shown.
    """
    folders = [Path(run) for path in paths for run in runs_of_seeds(Path(path))]
    logs, broken = list[RunLog](), list[str]()
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            logs.append(read_run(folder, name))
        except UserError as error:
            broken += error.errors
    if not logs:
        raise UserError(broken)
    return logs, broken


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; the folder of a seed is never named without the one above it."""
    parts = [folder.resolve().parts for folder in folders]
    least = [2 if is_seed_folder(folder) else 1 for folder in folders]
    depth = next(
        (n for n in range(8) if len({p[-n - k :] for p, k in zip(parts, least, strict=True)}) == len(set(parts))), 8
    )
    return ["/".join(p[-depth - k :]) for p, k in zip(parts, least, strict=True)]


def curves_page(logs: Sequence[RunLog], broken: Sequence[str]) -> Page:
    """The page of these runs; `broken` are lines about those that cannot be shown."""
    problems = [*broken, *(f"{log.name}: {problem}." for log in logs for problem in log.problems)]
    sections = [PageSection("Runs", [TextTable(COLUMNS, [_row(log) for log in logs]), NOTE])]
    if problems:
        sections.append(PageSection("Damaged or missing", problems))
    for column, title, unit, log_y in CURVES:
        sections += _curve(logs, column, title, unit, log_y)
    sections += _by_window(logs)
    sections += _by_label(logs)
    return Page("Training runs", f"Curves of {len(logs)} runs, from their metrics.jsonl.", sections)


def summary_of(log: RunLog) -> dict[str, Any]:
    """What the table says of a run, as JSON values."""
    seconds, held_out = log.seconds(), [value for value in log.column("eval_loss") if value is not None]
    return {
        "run": log.name, "folder": str(log.folder), "state": log.state, "problems": list(log.problems),
        "passes": log.last("passes"), "seed": log.recipe.train.seed if log.recipe else None, "steps": log.rows[-1]["step"],
        "skipped": sum(row.get("skipped") is True for row in log.rows),
        "tokens": log.last("tokens"), "seconds": seconds[-1] if seconds else None, "training_loss": log.training_loss,
        "held_out_loss": log.last("eval_loss"), "best_held_out_loss": min(held_out, default=None),
        "held_out_accuracy": log.last("eval_accuracy"), "accuracy_by_label": _labels(log),
    }  # fmt: skip


def _row(log: RunLog) -> list[str]:
    found = summary_of(log)
    return [
        log.name, log.state, number(found["passes"], "{:.0f}"), number(found["seed"], "{}"), number(found["steps"], "{:,}"),
        number(found["skipped"], "{:,}"),
        number(found["tokens"], "{:,.0f}"), number(found["seconds"], "{:,.0f}"), number(found["training_loss"]),
        number(found["held_out_loss"]), number(found["best_held_out_loss"]), number(found["held_out_accuracy"], "{:.3f}"),
    ]  # fmt: skip


def _curve(logs: Sequence[RunLog], column: str, title: str, unit: str, log_y: bool) -> list[PageSection]:
    """The chart of one column over the steps; a sentence names the runs that do not have it. Empty where none has evaluated."""
    shown = [log for log in logs if log.has(column)]
    without = [log.name for log in logs if not log.has(column)]
    told = [f"Without {column}: {', '.join(without)}."] if without else []
    if not column.startswith("eval_"):
        gaps = [(log, log.column(column).count(None)) for log in shown]
        told += [
            f"{log.name}: {n} of {len(log.rows)} steps have no finite {column} and are not drawn."
            for log, n in gaps
            if n
        ]
    if not shown:
        return [] if column.startswith("eval_") else [PageSection(title, told)]
    evaluated = column.startswith("eval_")
    lines = [Line(log.name, log.steps, log.column(column), style="marks" if evaluated else "line") for log in shown]
    positive = all(value is None or value > 0 for line in lines for value in line.y)
    return [PageSection(title, [Chart(title, "optimizer step", unit, lines, log_y=log_y and positive), *told])]


def _by_window(logs: Sequence[RunLog]) -> list[PageSection]:
    """Loss by window at the end of training."""
    lines = []
    for log in logs:
        tables = [row["loss_by_window"] for row in log.final_rows if isinstance(row.get("loss_by_window"), list)]
        count = max(map(len, tables), default=0)
        losses = [mean([table[i] for table in tables if i < len(table)]) for i in range(count)]
        if any(loss is not None for loss in losses):
            lines.append(Line(log.name, [float(i + 1) for i in range(count)], losses, style="marks"))
    if not lines:
        return [PageSection("Loss by window", ["No run has loss_by_window."])]
    ticks = [(float(i), str(i)) for i in range(1, max(len(line.x) for line in lines) + 1)]
    chart = Chart(
        "Loss by window", "window of the sample (number)", "training loss (nats per target)", lines,
        ticks=ticks if len(ticks) <= 16 else (),
    )  # fmt: skip
    return [
        PageSection(
            "Loss by window", [chart, "Means over the last 5 % of the steps. Windows without targets have no loss."]
        )
    ]


def _labels(log: RunLog) -> dict[str, float]:
    tables = [row["eval_accuracy_by_label"] for row in log.rows if isinstance(row.get("eval_accuracy_by_label"), dict)]
    return tables[-1] if tables else {}


def _by_label(logs: Sequence[RunLog]) -> list[PageSection]:
    """The last accuracy on held-out data by label of the task."""
    tables = {log.name: found for log in logs if (found := _labels(log))}
    labels = sorted({label for found in tables.values() for label in found}, key=lambda label: (len(label), label))
    if not labels:
        return []
    rows = [[name, *(number(found.get(label), "{:.3f}") for label in labels)] for name, found in tables.items()]
    names = {label.get("name") for log in logs if isinstance(label := log.manifest.get("label"), dict)}
    title = f"Accuracy by {names.pop() or 'label'}" if len(names) == 1 else "Accuracy by label"
    return [
        PageSection(
            title, [TextTable(["run", *labels], rows), f"Share of targets; {NONE}: not in the data of this run."]
        )
    ]
