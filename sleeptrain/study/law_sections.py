"""What a report says of scaling laws: the fitted constants, the best sizes for a budget of FLOPs, and extrapolations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.config import TargetSize
from sleeptrain.study.page import PageSection, TextTable, estimate
from sleeptrain.study.results import LossKind, Setting, StudyRun
from sleeptrain.study.scaling import CONSTANTS, RESAMPLES, ScalingFit, ScalingLaw, distinct, fit_law, obstacle

NAMES = ("E", "A", "B", "alpha", "beta")
FIT_NOTE = (
    "L = E + A / params^alpha + B / tokens^beta, in nats per target, by the third approach of arXiv 2203.15556 (Huber loss of log "
    f"losses). Params are all parameters, a tied head counted once. Brackets are 95 % bootstrap intervals: {RESAMPLES} times as many "
    "runs are drawn with replacement. They show the noise of the runs, and not whether the law holds beyond them."
)


@dataclass(frozen=True)
class LawGroup:
    """Runs of one law: they differ in size, tokens and seed."""

    name: str
    runs: Sequence[StudyRun]
    fit: ScalingFit | None
    why: str | None
    """Why there is no fit."""

    @property
    def cost(self) -> float | None:
        """Mean FLOPs of a run by parameter and token; None where the metrics do not say."""
        found = [run.flops / (run.params * run.tokens) for run in self.runs if run.flops and run.params and run.tokens]
        return float(np.mean(found)) if len(found) == len(self.runs) else None

    def budgets(self) -> list[float]:
        """The FLOPs of the smallest and the largest run, and what lies between them; empty where the metrics do not say."""
        flops = [run.flops for run in self.runs if run.flops]
        return np.geomspace(min(flops), max(flops), 3).tolist() if len(flops) == len(self.runs) else []


def law_groups(settings: Sequence[Setting], kind: LossKind) -> list[LawGroup]:
    """The settings by the values of the axes that change neither size nor tokens, with a law for each group.

    Empty if no axis changes the size, or none the tokens.
    """
    axes = [axis for axis in settings[0].labels if not _scales(settings, axis)] if settings else []
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(setting.labels[axis] for axis in axes), []).append(setting)
    found = []
    for key, group in groups.items():
        name = ", ".join(f"{axis.rpartition('.')[2]} {label}" for axis, label in zip(axes, key, strict=True))
        runs = [run for setting in group for run in setting.runs if run.params and run.tokens and run.loss(kind)]
        params, tokens = [float(run.params or 0) for run in runs], [float(run.tokens or 0) for run in runs]
        if min(len(set(distinct(values))) for values in (params, tokens)) < 2:
            continue
        why = obstacle(params, tokens)
        fit = fit_law(params, tokens, [run.loss(kind) or 0.0 for run in runs]) if why is None else None
        if fit is not None and fit.at_end:
            ends = ", ".join(fit.at_end)
            fit, why = None, f"the losses do not determine {ends}: the best fit has it at the end of what is allowed"
        found.append(LawGroup(name or "all runs", runs, fit, why))
    return found


def _scales(settings: Sequence[Setting], axis: str) -> bool:
    """Whether two settings that differ in this axis alone differ in size or tokens."""
    for one in settings:
        for other in settings:
            if {name for name in one.labels if one.labels[name] != other.labels[name]} == {axis}:
                a, b = one.runs[0], other.runs[0]
                if a.params != b.params or a.tokens != b.tokens:
                    return True
    return False


def law_sections(groups: Sequence[LawGroup], targets: Mapping[str, TargetSize]) -> list[PageSection]:
    """The sections of the laws: constants, optima, extrapolations."""
    if not groups:
        return []
    fitted = [(group, group.fit) for group in groups if group.fit is not None]
    without = [f"{group.name}: no fit, because {group.why}." for group in groups if group.fit is None]
    rows = [
        [
            g.name,
            str(len(g.runs)),
            *(_value(fit, lambda law, n=name: getattr(law, n)) for name in NAMES),
            f"{fit.error:.2g}",
        ]
        for g, fit in fitted
    ]
    table: list[str | TextTable | Chart] = (
        [TextTable(("runs", "number", *NAMES, "error of log loss"), rows), FIT_NOTE] if rows else []
    )
    sections = [PageSection("Scaling law", [*table, *without])]
    sections += [section for g, fit in fitted for section in _optima(g, fit)]
    if targets and fitted:
        sections.append(PageSection("Extrapolation", _extrapolation(fitted, targets)))
    return sections


def _value(fit: ScalingFit, of: Any, form: str = "{:.4g}") -> str:
    return estimate(of(fit.law), fit.interval(of), form)


def _optima(group: LawGroup, fit: ScalingFit) -> list[PageSection]:
    """The best size and number of tokens at budgets that runs had, with the losses over the size at each."""
    cost = group.cost
    if cost is None:
        return []
    rows, lines = [], []
    params = [float(run.params or 0) for run in group.runs]
    sizes = np.geomspace(min(params) / 2, max(params) * 2, 60)
    for flops in group.budgets():

        def lowest(law: ScalingLaw, flops: float = flops) -> float:
            return law.loss(*law.optimum(flops, cost))

        best = [_value(fit, lambda law, i=i, flops=flops: law.optimum(flops, cost)[i], "{:.3g}") for i in (0, 1)]
        rows.append([f"{flops:.3g}", *best, _value(fit, lowest)])
        lines.append(Line(f"{flops:.2g} FLOPs", sizes.tolist(), [fit.law.loss(n, flops / (cost * n)) for n in sizes]))
    told = (
        f"Training takes {cost:.3g} FLOPs for each parameter and token, the mean over the runs. The minima are those of the fitted law; "
        f"sizes of runs are from {min(params):.3g} to {max(params):.3g}."
    )
    table = TextTable(("FLOPs", "params", "tokens", "loss"), rows)
    title = f"Minima at equal FLOPs: {group.name}"
    return [PageSection(title, [table, told, Chart(title, "parameters", "loss (nats per target)", lines, log_x=True)])]


def _extrapolation(
    fitted: Sequence[tuple[LawGroup, ScalingFit]], targets: Mapping[str, TargetSize]
) -> list[str | TextTable | Chart]:
    rows = []
    for name, size in targets.items():
        for group, fit in fitted:
            beyond = [
                size.params / max(run.params or 1 for run in group.runs),
                size.tokens / max(run.tokens or 1.0 for run in group.runs),
            ]
            rows.append([
                name, group.name, f"{size.params:.3g}", f"{size.tokens:.3g}", "{:.3g}, {:.3g}".format(*beyond),
                _value(fit, lambda law, size=size: law.loss(size.params, size.tokens)),
            ])  # fmt: skip
    columns = ("size", "runs", "params", "tokens", "times the largest run", "loss")
    told = "An extrapolation assumes that the law goes on, which nothing here shows: the farther, the less it is worth."
    return [TextTable(columns, rows), told]


def law_json(group: LawGroup, targets: Mapping[str, TargetSize]) -> dict[str, Any]:
    """A law with its intervals as JSON values."""
    found: dict[str, Any] = {"runs": group.name, "number": len(group.runs), "why_not": group.why}
    fit, cost = group.fit, group.cost
    if fit is None:
        return found
    assert len(NAMES) == CONSTANTS
    found["constants"] = {n: _json(fit, lambda law, n=n: getattr(law, n)) for n in NAMES} | {"error": fit.error}
    if cost is not None:
        found["flops_per_param_token"] = cost
        found["optima"] = [
            {"flops": c}
            | {n: _json(fit, lambda law, i=i, c=c: law.optimum(c, cost)[i]) for i, n in enumerate(("params", "tokens"))}
            for c in group.budgets()
        ]
    found["extrapolated"] = {
        name: _json(fit, lambda law, size=size: law.loss(size.params, size.tokens)) for name, size in targets.items()
    }
    return found


def _json(fit: ScalingFit, of: Any) -> dict[str, Any]:
    return {"value": of(fit.law), "interval": fit.interval(of)}
