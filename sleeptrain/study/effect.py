"""The effect of the number of passes at equal tokens, equal FLOPs and equal time, read from the curves of the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sleeptrain.evaluate.intervals import Interval, difference_interval
from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.page import PageSection, TextTable, estimate, number
from sleeptrain.study.results import Setting, StudyRun

NOISE = 20
"""Steps over which training losses are averaged where a run was not evaluated while training."""
EFFECT_NOTE = (
    "Losses at a budget are read from the curve of each run: on held-out data where all runs of both settings were evaluated at least "
    "twice while training, else in training. The budget is what the cheaper one of both has used at its end. 'Read at' is how far each run was: a run that is read "
    "before its end still has a high learning rate, which is to its disadvantage; train it with that many steps to be sure. "
    "Differences are paired by seed, with 95 % intervals over the seeds; below 0 more passes are better."
)


def _tokens(run: StudyRun) -> list[float] | None:
    column = run.log.column("tokens")
    return None if None in column else [float(value) for value in column if value is not None]


BUDGETS: tuple[tuple[str, Callable[[StudyRun], list[float] | None]], ...] = (
    ("tokens", _tokens),
    ("FLOPs", lambda run: run.log.flops()),
    ("seconds", lambda run: run.log.seconds()),
)
"""What can be equal, and how much of it each run has used up to each step."""


@dataclass(frozen=True)
class PassesEffect:
    """Two settings that differ in the number of passes, at one budget."""

    more: Setting
    fewer: Setting
    budget: str
    amount: float
    losses: tuple[list[float], list[float]]
    """By seed, of more passes and of fewer."""
    kind: str
    """`held out` or `training`, of all of them."""
    read_at: tuple[float, float]
    """Mean share of the whole run after which the losses were read."""

    @property
    def difference(self) -> float:
        """Mean loss with more passes minus that with fewer."""
        return float(np.mean(self.losses[0]) - np.mean(self.losses[1]))

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the difference over the seeds."""
        return difference_interval(*self.losses, paired=self.more.seeds == self.fewer.seeds)


def curve_kind(runs: Sequence[StudyRun]) -> str:
    """The kind of loss whose curve all runs have: `held out` where each has two evaluations, else `training`.

    Losses of different kinds cannot be compared: a longer run may have several evaluations, and a shorter one the last alone.
    """
    counts = [sum(loss is not None for loss in run.log.column("eval_loss")) for run in runs]
    return "held out" if min(counts) >= 2 else "training"


def loss_curve(run: StudyRun, kind: str) -> tuple[list[int], list[float]]:
    """Rows of the metrics and the losses there: of the evaluations, or of training, averaged."""
    column = run.log.column("eval_loss" if kind == "held out" else "loss")
    losses = [(row, loss) for row, loss in enumerate(column) if loss is not None]
    if kind == "held out":
        return [row for row, _ in losses], [loss for _, loss in losses]
    values = [loss for _, loss in losses]
    means = [float(np.mean(values[max(0, i - NOISE + 1) : i + 1])) for i in range(len(values))]
    return [row for row, _ in losses], means


def _read(run: StudyRun, kind: str, used: Sequence[float], amount: float) -> float | None:
    """The loss once `amount` is used, between the points of the curve; None before the first one."""
    rows, losses = loss_curve(run, kind)
    at = [used[row] for row in rows]
    if not at or amount < at[0]:
        return None
    return float(np.interp(amount, at, losses))


def effects(settings: Sequence[Setting]) -> Iterator[PassesEffect]:
    """Every pair of settings that differ in one axis, and in the number of passes, at every budget that can be read."""
    for more in settings:
        for fewer in settings:
            if (more.runs[0].passes or 0) <= (fewer.runs[0].passes or 0):
                continue
            if sum(more.labels[axis] != fewer.labels[axis] for axis in more.labels) == 1:
                for budget, used in BUDGETS:
                    if (effect := _effect(more, fewer, budget, used)) is not None:
                        yield effect


def _effect(
    more: Setting, fewer: Setting, budget: str, used: Callable[[StudyRun], list[float] | None]
) -> PassesEffect | None:
    curves = [[(run, used(run)) for run in setting.runs] for setting in (more, fewer)]
    totals = [[curve[-1] for _, curve in side if curve] for side in curves]
    if any(len(total) < len(side) for total, side in zip(totals, curves, strict=True)):
        return None
    amount = min(min(total) for total in totals)
    kind = curve_kind([*more.runs, *fewer.runs])
    losses = [[_read(run, kind, curve, amount) for run, curve in side if curve] for side in curves]
    if any(loss is None for side in losses for loss in side):
        return None
    known = [[float(loss) for loss in side if loss is not None] for side in losses]
    shares = [float(np.mean([amount / total for total in side])) for side in totals]
    return PassesEffect(more, fewer, budget, amount, (known[0], known[1]), kind, (shares[0], shares[1]))


def effect_sections(found: Sequence[PassesEffect], settings: Sequence[Setting]) -> list[PageSection]:
    """The table of the effects and a chart of the curves over FLOPs; nothing where no two settings can be compared."""
    if not found:
        return []
    columns = ("more passes", "fewer passes", "at equal", "", "losses", "more", "fewer", "difference", "read at")
    rows = [
        [
            e.more.name, e.fewer.name, e.budget, f"{e.amount:.3g}", e.kind, number(float(np.mean(e.losses[0]))),
            number(float(np.mean(e.losses[1]))), estimate(e.difference, e.interval, "{:+.4f}"),
            f"{e.read_at[0]:.0%}, {e.read_at[1]:.0%}",
        ]
        for e in found
    ]  # fmt: skip
    lines, kind = [], curve_kind([setting.runs[0] for setting in settings])
    for setting in settings:
        run = setting.runs[0]
        used = run.log.flops()
        if used:
            at, losses = loss_curve(run, kind)
            lines.append(Line(f"{setting.name}, seed {setting.seeds[0]}", [used[row] for row in at], list(losses)))
    chart = Chart(
        "Loss over FLOPs of the first seed",
        "model FLOPs of training",
        f"{kind} loss (nats per target)",
        lines,
        log_x=True,
    )
    return [
        PageSection(
            "Effect of the number of passes", [TextTable(columns, rows), EFFECT_NOTE, *([chart] if lines else [])]
        )
    ]
