"""Draws a schedule as a timeline with one row per stage, in text and in SVG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from sleeptrain.schedule.estimate import Costs, simulate_costs
from sleeptrain.schedule.schedule import Schedule, ScheduleAction
from sleeptrain.schedule.simulate import Simulation, describe, simulate

SLOTS = {"FWD": 1.0, "RECOMPUTE": 1.0, "BWD": 2.0}
"""Duration of an action in slots, if no costs are given."""
FORWARD, BACKWARD = "0123456789abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEGEND = "0-9, a-z: forward of a micro-batch · A-Z: backward · r: recompute · +: head · .: idle"
COLOURS = {"FWD": "#5b8def", "RECOMPUTE": "#b9c9ea", "BWD": "#f2a65a", "LOSS": "#6fbf73", "REDUCE": "#8c8c8c"}
ROW, BAR, LABEL, WIDTH = 34, 26, 70, 1200


@dataclass(frozen=True)
class Picture:
    """The timeline of a schedule, as text and as an SVG document."""

    text: str
    svg: str


@dataclass(frozen=True)
class _Bar:
    """An action that takes time, with its span."""

    begin: float
    end: float
    action: ScheduleAction
    backward: bool

    @property
    def colour(self) -> str:
        """Colour by kind of action; all recompute has one colour."""
        restores = self.action.kind == "FWD" and self.backward
        return COLOURS["RECOMPUTE" if restores else self.action.kind]

    @property
    def letter(self) -> str:
        """One character: the micro-batch for forward and backward, `+` for the head, `r` for recompute."""
        if self.action.kind == "BWD":
            return BACKWARD[self.action.micro % len(BACKWARD)]
        if self.action.kind == "FWD" and not self.backward:
            return FORWARD[self.action.micro % len(FORWARD)]
        return "+" if self.action.kind == "LOSS" else "r"


def draw(schedule: Schedule, costs: Costs | None = None, columns: int = 120) -> Picture:
    """The timeline of a schedule: when every stage works, and on which micro-batch.

    Without `costs` a stage op takes one slot for forward, one for recompute and two for backward, and messages take no
    time. The text has one column per slot, or samples the timeline at `columns` points in time if there are more slots.
    """
    run = simulate(schedule, _slots, lambda action: 0.0) if costs is None else simulate_costs(schedule, costs)
    rows = [list(_bars(schedule, run, s)) for s in range(len(schedule.stages))]
    width = columns if costs is not None else min(columns, max(1, round(run.seconds)))
    return Picture(_text(schedule, run, rows, width), _svg(schedule, run, rows))


def _slots(stage: int, action: ScheduleAction, backward: bool) -> float:
    return SLOTS.get(action.kind, 0.0)


def _bars(schedule: Schedule, run: Simulation, s: int) -> Iterator[_Bar]:
    """Actions of a stage that take time, in order."""
    stage = schedule.stages[s]
    actions = (*stage.forward, *stage.backward)
    for k, (begin, end) in enumerate(run.spans[s]):
        if end > begin:
            yield _Bar(begin, end, actions[k], k >= len(stage.forward))


def _title(schedule: Schedule, run: Simulation, rows: list[list[_Bar]]) -> str:
    busy = sum(bar.end - bar.begin for row in rows for bar in row)
    idle = 1 - busy / (run.seconds * len(rows)) if run.seconds else 0.0
    count = len(schedule.stages)
    stages = f"{count} stage{'s' if count > 1 else ''}"
    invalid = " · invalid schedule" if run.problems else ""
    return f"{stages} · group of {schedule.group} micro-batches · {idle:.1%} idle{invalid}"


def _text(schedule: Schedule, run: Simulation, rows: list[list[_Bar]], columns: int) -> str:
    lines = [_title(schedule, run, rows)]
    for s, row in enumerate(rows):
        cells, k = [], 0
        for column in range(columns):
            time = (column + 0.5) * run.seconds / columns
            while k < len(row) and row[k].end <= time:
                k += 1
            cells.append(row[k].letter if k < len(row) and row[k].begin <= time else ".")
        busy = sum(bar.end - bar.begin for bar in row) / run.seconds if run.seconds else 0.0
        lines.append(f"stage {s:<3}|{''.join(cells)}| {busy:.0%}")
    lines.append(LEGEND)
    return "\n".join(lines)


def _svg(schedule: Schedule, run: Simulation, rows: list[list[_Bar]]) -> str:
    scale = (WIDTH - LABEL) / run.seconds if run.seconds else 0.0
    height = ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="4" y="20" font-size="14">{escape(_title(schedule, run, rows))}</text>',
    ]
    for s, row in enumerate(rows):
        top = ROW * (s + 1)
        parts.append(f'<text x="4" y="{top + 18}">stage {s}</text>')
        parts.append(f'<rect x="{LABEL}" y="{top}" width="{WIDTH - LABEL}" height="{BAR}" fill="#f3f3f3"/>')
        parts += [_rect(schedule, bar, LABEL + bar.begin * scale, top, (bar.end - bar.begin) * scale) for bar in row]
    parts += _legend(ROW * (len(rows) + 1))
    return "\n".join([*parts, "</svg>"])


def _rect(schedule: Schedule, bar: _Bar, x: float, y: int, width: float) -> str:
    label = ""
    if width >= 9:
        label = f'<text x="{x + width / 2:.2f}" y="{y + 17}" text-anchor="middle">{bar.action.micro}</text>'
    return (
        f'<g><title>{escape(describe(schedule.program, bar.action))}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" '
        f'height="{BAR}" fill="{bar.colour}" stroke="#ffffff" stroke-width="0.5"/>{label}</g>'
    )


def _legend(y: int) -> Iterator[str]:
    labels = {"FWD": "forward", "RECOMPUTE": "recompute", "BWD": "backward", "LOSS": "head"}
    for k, (kind, label) in enumerate(labels.items()):
        x = LABEL + 130 * k
        yield f'<rect x="{x}" y="{y + 6}" width="14" height="14" fill="{COLOURS[kind]}"/>'
        yield f'<text x="{x + 20}" y="{y + 18}">{label}</text>'
