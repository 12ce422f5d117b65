"""Results of one or more runs as JSON, a table, Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Measured


@dataclass(frozen=True)
class Entry:
    """One run at one step, measured at one or more numbers of passes."""

    name: str
    run: str
    step: int
    tokens: int
    """Tokens trained on."""
    seconds: float | None
    """Time spent in training steps; None where the run kept no metrics."""
    trained_passes: int
    measured: Sequence[Measured]


def to_json(entries: Sequence[Entry], manifest: Manifest, environment: dict[str, Any], command: str) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "task": manifest.task, "label": manifest.label, "baselines": manifest.baselines, "data": manifest.hash,
        "command": command, "environment": environment,
        "runs": [
            {
                "name": e.name, "run": e.run, "step": e.step, "tokens": e.tokens, "seconds": e.seconds,
                "trained_passes": e.trained_passes, "measured": [_measured(m) for m in e.measured],
            }
            for e in entries
        ],
    }  # fmt: skip


def _measured(m: Measured) -> dict[str, Any]:
    return {
        "passes": m.passes, "samples": m.samples, "loss": m.loss, "targets": m.targets, "residual": m.residual,
        "state_norm": m.state_norm, "retention": m.retention, "retention_by_head": m.retention_by_head,
        "by_value": {str(value): tally.row() for value, tally in sorted(m.by_value.items())},
    }  # fmt: skip


HEADER = ("run", "N trained", "N", "tokens", "seconds", "loss", "residual", "state norm", "retention")


def rows(entries: Sequence[Entry], manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: accuracy with its 95 % interval by label value, baselines first."""
    values = sorted({v for e in entries for m in e.measured for v in m.by_value})
    label = manifest.label or "all"
    header = [
        *HEADER,
        *(f"{label}={v}" if manifest.label else "accuracy" for v in values),
        *(f"{label}={v} exact" for v in values if manifest.label),
    ]
    found = [
        _baseline(manifest, values, kind, exact)
        for kind, exact in (("chance", "exact_chance"), ("majority", "exact_majority"))
    ]
    found = [row for row in found if any(cell != "–" for cell in row[len(HEADER) :])]
    for e in entries:
        for m in e.measured:
            line = [
                e.name, str(e.trained_passes), str(m.passes), f"{e.tokens:,}", _number(e.seconds, "{:.0f}"), f"{m.loss:.4f}",
                _number(m.residual, "{:.3f}"), f"{m.state_norm:.3g}", _number(m.retention, "{:.2g}"),
            ]  # fmt: skip
            tallies = [m.by_value[v].row() if v in m.by_value else None for v in values]
            line += [_interval(t, "accuracy", "interval") for t in tallies]
            line += [_interval(t, "exact", "exact_interval") for t in tallies] if manifest.label else []
            found.append(line)
    return header, found


def _baseline(manifest: Manifest, values: Sequence[int], kind: str, exact: str) -> list[str]:
    tables = [manifest.baselines.get(str(v), {}) for v in values]
    cells = [_number(t.get(kind), "{:.3f}") for t in tables]
    cells += [_number(t.get(exact), "{:.3g}") for t in tables] if manifest.label else []
    return [f"({kind})", *["–"] * (len(HEADER) - 1), *cells]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _interval(row: dict[str, Any] | None, share: str, interval: str) -> str:
    if row is None or row[share] is None:
        return "–"
    low, high = row[interval]
    return f"{row[share]:.3f} [{low:.3f}, {high:.3f}]"


def comparison(entries: Sequence[Entry], manifest: Manifest) -> list[str]:
    """Each pair of runs that trained with different numbers of passes: what it cost, and where their intervals part.

    Runs are compared at the number of passes they trained with. Tokens and time are given side by side, because equal
    tokens and equal time are two different questions.
    """
    found = []
    pairs = [(a, b) for a in entries for b in entries if a.trained_passes > b.trained_passes]
    for more, fewer in pairs:
        high, low = (next((m for m in e.measured if m.passes == e.trained_passes), None) for e in (more, fewer))
        if high is None or low is None:
            continue
        words: dict[str, list[str]] = {"more": [], "fewer": [], "level": []}
        for value in sorted(high.by_value.keys() & low.by_value.keys()):
            a, b = high.by_value[value].row()["interval"], low.by_value[value].row()["interval"]
            words["more" if a[0] > b[1] else "fewer" if b[0] > a[1] else "level"].append(str(value))
        cost = f"{more.tokens / max(1, fewer.tokens):.2f} times the tokens"
        if more.seconds and fewer.seconds:
            cost += f" and {more.seconds / fewer.seconds:.2f} times the time"
        label = manifest.label or "value"
        said = [
            f"ahead at {label} = {', '.join(words['more'])}" if words["more"] else "",
            f"behind at {label} = {', '.join(words['fewer'])}" if words["fewer"] else "",
            f"not separated at {label} = {', '.join(words['level'])}" if words["level"] else "",
        ]
        found.append(
            f"{more.name} (N={more.trained_passes}) with {cost} of {fewer.name} (N={fewer.trained_passes}): {'; '.join(filter(None, said))}."
        )
    return found


def markdown(entries: Sequence[Entry], manifest: Manifest, plot: str | None = None) -> str:
    """The table, and how to read it."""
    header, lines = rows(entries, manifest)
    text = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *lines)]
    notes = (
        "Accuracy is per answer token, `exact` per whole answer; brackets are 95 % intervals (Wilson) over what was "
        "evaluated, which is one training seed each. `N trained` is the number of passes in training, `N` that at test. "
        "Retention is the share of what the first pass wrote of the first window that decay leaves when the last window "
        "begins, in the best head; residual is the relative change of the features from one pass to the next."
    )
    compared = [f"- {line}" for line in comparison(entries, manifest)]
    return "\n".join([*text, "", notes, "", *compared, *([f"\n![accuracy]({plot})"] if plot else []), ""])


def print_table(entries: Sequence[Entry], manifest: Manifest) -> None:
    """The table on the terminal, label values as lines where they are many."""
    from rich.console import Console
    from rich.table import Table

    header, lines = rows(entries, manifest)
    table = Table(title=f"{manifest.task}: {len(entries)} run(s)")
    columns = [header[0], *(f"{line[0]}  N={line[2]}" if line[2] != "–" else line[0] for line in lines)]
    for name in columns:
        table.add_column("" if name == "run" else name, justify="left" if name == "run" else "right")
    for i, name in enumerate(header[1:], 1):
        if any(line[i] != "–" for line in lines):
            table.add_row(name, *(line[i] for line in lines))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for line in comparison(entries, manifest):
        console.print(line)


def plot(entries: Sequence[Entry], manifest: Manifest, path: Path) -> bool:
    """Accuracy by label value, a line a run and N, baselines dashed; false where there is no label to plot over."""
    values = sorted({v for e in entries for m in e.measured for v in m.by_value})
    if manifest.label is None or not values:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for e in entries:
        for m in e.measured:
            there = [v for v in values if v in m.by_value]
            found = [m.by_value[v].row() for v in there]
            shares: list[Any] = [r["accuracy"] for r in found]
            spread: list[Any] = [r["interval"] for r in found]
            low = [s - i[0] for s, i in zip(shares, spread, strict=True)]
            high = [i[1] - s for s, i in zip(shares, spread, strict=True)]
            axes.errorbar(
                [values.index(v) for v in there],
                shares,
                yerr=[low, high],
                marker="o",
                capsize=3,
                label=f"{e.name}, N={m.passes}",
            )
    majority = [manifest.baselines.get(str(v), {}).get("majority") for v in values]
    if all(x is not None for x in majority):
        axes.plot(range(len(values)), majority, "k--", lw=1, label="majority")  # type: ignore[arg-type]
    axes.set_xticks(range(len(values)), [str(v) for v in values])
    axes.set(
        xlabel=manifest.labels.get(manifest.label, manifest.label),
        ylabel="share of answer tokens right",
        title=manifest.task,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def write(
    entries: Sequence[Entry], manifest: Manifest, out: Path, environment: dict[str, Any], command: str
) -> list[Path]:
    """report.json, report.md and accuracy.png under `out`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    image = out / "accuracy.png"
    drawn = plot(entries, manifest, image)
    (out / "report.json").write_text(json.dumps(to_json(entries, manifest, environment, command), indent=1))
    (out / "report.md").write_text(
        f"# {manifest.task}\n\n`{command}`\n\n" + markdown(entries, manifest, image.name if drawn else None)
    )
    return [out / "report.json", out / "report.md", *([image] if drawn else [])]
