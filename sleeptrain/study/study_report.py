"""The report of a study: its settings over seeds, learning rates, accuracy by depth, effect of passes, scaling laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sleeptrain.config.tree import select
from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.config import Study, TransferredRate, TunedRate
from sleeptrain.study.depth import SHARES, depth_lines, depth_sections
from sleeptrain.study.effect import PassesEffect, effect_sections, effects
from sleeptrain.study.law_sections import LawGroup, law_groups, law_json, law_sections
from sleeptrain.study.page import NONE, Page, PageSection, TextTable, estimate, number
from sleeptrain.study.results import Results, Setting

KINDS = {
    "evaluation": "of `sleeptrain eval` after training, with the passes of training",
    "held out": "on held-out data after the last step",
    "training": "in training, over the last 5 % of the steps",
}


class StudyReport:
    """What the runs of a study show, computed once, as a page and as JSON values."""

    def __init__(self, study: Study, name: str, results: Results, total: int) -> None:
        """`total` is the number of runs that the study has when it is done."""
        self._study, self._name, self._results, self._total = study, name, results, total
        self._kind = results.loss_kind
        self._tuned = [key for key, rate in study.rates.items() if isinstance(rate, TunedRate)]
        self._settings = results.best(self._tuned)
        self._effects: list[PassesEffect] = list(effects(self._settings))
        self._laws: list[LawGroup] = law_groups(self._settings, self._kind)

    def page(self) -> Page:
        """The page with tables and charts."""
        about = (
            f"Recipe {self._study.recipe}; {len(self._results.runs)} of {self._total} runs are done. Losses are {KINDS[self._kind]}, "
            "in nats per target. Brackets are 95 % intervals of the mean over the seeds (Student's t); one seed has none, and decides "
            "nothing."
        )
        sections = (
            [PageSection("Runs that are missing or damaged", self._results.missing)] if self._results.missing else []
        )
        if self._settings:
            sections += [
                PageSection("Results", [self._table()]),
                *self._rates(),
                *self._published(),
                *self._axis_charts(),
            ]
            sections += depth_sections(self._settings)
            sections += effect_sections(self._effects, self._settings)
            sections += law_sections(self._laws, self._study.extrapolate)
        return Page(f"Study {self._name}", about, sections)

    def _loss(self, setting: Setting) -> float | None:
        return setting.mean(lambda run: run.loss(self._kind))

    def _table(self) -> TextTable:
        columns = ["setting", "seeds", "params", "tokens", "FLOPs", "seconds", *self._study.rates, "loss"]
        rows = []
        for setting in self._settings:
            recipe = setting.runs[0].log.recipe
            rates = [select(recipe, key.split(".")) if recipe else None for key in self._study.rates]
            rows.append([
                setting.name, str(len(setting.runs)), number(setting.mean(lambda run: run.params), "{:,.0f}"),
                number(setting.mean(lambda run: run.tokens), "{:,.0f}"), number(setting.mean(lambda run: run.flops), "{:.3g}"),
                number(setting.mean(lambda run: run.seconds), "{:,.0f}"), *(number(rate, "{:.3g}") for rate in rates),
                estimate(self._loss(setting), setting.interval(lambda run: run.loss(self._kind))),
            ])  # fmt: skip
        return TextTable(columns, rows)

    def _rates(self) -> list[PageSection]:
        """How learning rates were chosen."""
        rules = [rate.rule(key) for key, rate in self._study.rates.items() if isinstance(rate, TransferredRate)]
        parts: list[str | TextTable | Chart] = [f"Transferred, not tuned: {rule}." for rule in rules]
        if self._tuned:
            kept = [setting.labels for setting in self._settings]
            rows = [
                [
                    s.name,
                    str(len(s.runs)),
                    estimate(self._loss(s), s.interval(lambda run: run.loss(self._kind))),
                    "taken" if s.labels in kept else "",
                ]
                for s in self._results.settings()
            ]
            told = (
                f"Tuned: {', '.join(self._tuned)}. Of the rates of a setting the one with the lowest mean loss is taken, among those with "
                "the most seeds that are done."
            )
            parts += [told, TextTable(("setting", "seeds", "loss", ""), rows)]
        return [PageSection("Learning rates", parts)] if parts else []

    def _published(self) -> list[PageSection]:
        """Results of others beside ours."""
        rows = []
        for result in self._study.published:
            wanted = {axis: str(label) for axis, label in result.setting.items()}
            for setting in [s for s in self._settings if wanted.items() <= s.labels.items()]:
                rows.append(
                    [setting.name, number(self._loss(setting)), *_accuracies(setting), result.value, result.source]
                )
            if not any(wanted.items() <= s.labels.items() for s in self._settings):
                rows.append(
                    [", ".join(f"{a} {v}" for a, v in wanted.items()), *[NONE] * 3, result.value, result.source]
                )
        columns = ("setting", "our loss", "our accuracy", "our exact accuracy", "published", "source")
        return [PageSection("Beside published results", [TextTable(columns, rows)])] if rows else []

    def _axis_charts(self) -> list[PageSection]:
        """The loss against every axis that has several values, one line for each setting of the others."""
        charts: list[str | TextTable | Chart] = []
        for axis in self._settings[0].labels:
            groups: dict[str, list[Setting]] = {}
            for setting in self._settings:
                rest = {a: label for a, label in setting.labels.items() if a != axis}
                groups.setdefault(Setting(rest, setting.runs).name, []).append(setting)
            labels = list(dict.fromkeys(setting.labels[axis] for setting in self._settings))
            if len(labels) < 2:
                continue
            places = _places(labels)
            # Between values with names of their own there is nothing that a line could show.
            style: Literal["marks", "points"] = "marks" if _are_numbers(labels) else "points"
            groups = {name: sorted(group, key=lambda s: places[s.labels[axis]]) for name, group in groups.items()}
            lines = [
                Line(
                    name if len(groups) > 1 else "", [places[s.labels[axis]] for s in group], [self._loss(s) for s in group],
                    [s.interval(lambda run: run.loss(self._kind)) for s in group], style=style,
                )
                for name, group in groups.items()
            ]  # fmt: skip
            ticks = [(place, label) for label, place in places.items()]
            charts.append(Chart(f"Loss by {axis}", axis, "final loss (nats per target)", lines, ticks=ticks))
        return [PageSection("Loss by axis", charts)] if charts else []

    def json(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values."""
        loss = self._kind
        return {
            "study": self._name, "recipe": self._study.recipe, "runs": self._total, "missing": list(self._results.missing),
            "loss": loss,
            "results": [
                {
                    "index": run.point.index, "folder": str(run.point.folder), "axes": dict(run.point.labels),
                    "params": run.params, "tokens": run.tokens, "flops": run.flops, "seconds": run.seconds, "loss": run.loss(loss),
                }
                for run in self._results.runs
            ],
            "settings": [
                {
                    "axes": dict(s.labels), "seeds": s.seeds, "loss": self._loss(s),
                    "interval": s.interval(lambda run: run.loss(loss)),
                }
                for s in self._settings
            ],
            "depth": [{"line": line.name, **{s: _shares(line.shares[s]) for s in SHARES}} for line in depth_lines(self._settings)],
            "effects": [
                {
                    "more": dict(e.more.labels), "fewer": dict(e.fewer.labels), "equal": e.budget, "amount": e.amount,
                    "difference": e.difference, "interval": e.interval, "read_at": e.read_at,
                    "loss": e.kind,
                }
                for e in self._effects
            ],
            "laws": [law_json(group, self._study.extrapolate) for group in self._laws],
        }  # fmt: skip


def _shares(by_value: Any) -> dict[str, list[float]]:
    return {str(value): list(shares) for value, shares in by_value.items()}


def _accuracies(setting: Setting) -> list[str]:
    """Accuracy and exact accuracy by label, with the passes of training."""
    line = next(iter(depth_lines([setting])), None)
    if line is None:
        return [NONE, NONE]
    return [
        "; ".join(f"{value}: {estimate(line.mean(s, value), line.interval(s, value), '{:.3f}')}" for value in line.shares[s]) or NONE
        for s in SHARES
    ]  # fmt: skip


def _are_numbers(labels: Sequence[str]) -> bool:
    try:
        return bool([float(label) for label in labels])
    except ValueError:
        return False


def _places(labels: Sequence[str]) -> dict[str, float]:
    """Where the values of an axis stand: at their number, or one after the other where they are no numbers."""
    if _are_numbers(labels):
        return {label: float(label) for label in labels}
    return {label: float(place) for place, label in enumerate(labels)}
