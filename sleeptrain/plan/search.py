"""Searches the layouts of a number of processes for the fastest that fit: all by a quick estimate, the best by exact plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sleeptrain.config import Resolved
from sleeptrain.errors import UserError
from sleeptrain.plan.automatic import without_auto
from sleeptrain.plan.choices import LayoutChoice, Layouts, choices
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.device import DeviceMemory
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.plan import Plan, make_plan
from sleeptrain.plan.quick import QuickEstimate, QuickPlanner
from sleeptrain.plan.step_time import StepTime, step_time
from sleeptrain.recipe.completion import check_batch
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.train.layout import resolve_layout

BEST = 5
"""Layouts that a search shows, each of another mesh."""
MARGIN = 1.1
"""A mesh is not planned exactly if its estimate is longer than the last of the best by this factor. Estimates are within .1 of exact
plans; they are furthest off where the messages of a pipeline are waited for."""
TRIES = 3
"""Exact plans of one mesh, where the estimate says that it fits and the plan that it does not."""
NO_FIT = "memory"
"""The reason of layouts that do not fit."""

Reload = Callable[[Sequence[str]], tuple[Resolved[Recipe], DataLayout]]
"""Loads the recipe with further changes, with all rules and the data, as the command does. Raises UserError."""
Show = Callable[[str, int, "int | None"], None]
"""Called with what is counted, the number so far, and its total."""


@dataclass(frozen=True)
class Found:
    """A layout that fits, planned exactly."""

    choice: LayoutChoice
    plan: Plan
    time: StepTime

    @property
    def seconds(self) -> float:
        """Of a step."""
        assert self.time.seconds is not None  # others are not looked at
        return self.time.seconds


@dataclass(frozen=True)
class Search:
    """What a search found."""

    best: tuple[Found, ...]
    """The fastest layout of each of the best meshes, fastest first."""
    seen: int
    """Number of layouts."""
    refused: Mapping[str, int]
    """Layouts by the rule that refuses them, `memory` for those that do not fit."""
    reasons: Mapping[str, str]
    """One reason of each rule."""
    least: tuple[float, LayoutChoice] | None
    """The layout that needs the least memory of all that no rule refuses, and the bytes of a process."""

    @property
    def slower(self) -> int:
        """Layouts that fit and are not shown."""
        return self.seen - sum(self.refused.values()) - len(self.best)


def search(
    reload: Reload, processes: int, memory: DeviceMemory, hardware: Hardware, show: Show | None = None
) -> Search:
    """The fastest layouts of `processes` processes that fit a memory, as the exact plan says.

    `reload`: loads the recipe, and again with every finalist's changes, so that all rules are asked. `show` is told of progress.
    """
    resolved, data_layout = reload(())
    layouts, quick = Layouts(resolved, data_layout, memory.gpu), QuickPlanner(data_layout, hardware)
    every = list(choices(resolved, processes))
    refused, reasons = Counter[str](), dict[str, str]()
    fitting: list[tuple[LayoutChoice, QuickEstimate]] = []
    least: tuple[float, LayoutChoice] | None = None
    meshes = list(dict.fromkeys(choice.mesh for choice in every))
    for choice in every:
        if show:
            show("meshes estimated", meshes.index(choice.mesh), len(meshes))
        layout = layouts.of(choice)
        if isinstance(layout, tuple):
            refused[layout[0]] += 1
            reasons.setdefault(*layout)
            continue
        estimated = quick.estimate(layout)
        if least is None or estimated.memory < least[0]:
            least = estimated.memory, choice
        if estimated.memory <= memory.usable:
            fitting.append((choice, estimated))
        else:
            refused[NO_FIT] += 1
    best = _finalists(reload, fitting, memory, hardware, show)
    return Search(tuple(best), len(every), refused, reasons, least)


def _finalists(
    reload: Reload,
    fitting: Sequence[tuple[LayoutChoice, QuickEstimate]],
    memory: DeviceMemory,
    hardware: Hardware,
    show: Show | None,
) -> list[Found]:
    """The exact plan of the fastest layout of each of the best meshes; of equally fast ones, of that which needs less memory."""
    ordered = sorted(fitting, key=lambda pair: (_rounded(pair[1].time.seconds), pair[1].memory))
    by_mesh: dict[tuple[int, int, int], tuple[list[LayoutChoice], float]] = {}
    for choice, estimated_by in ordered:
        by_mesh.setdefault(choice.mesh, ([], _rounded(estimated_by.time.seconds)))[0].append(choice)
    found: list[Found] = []
    for variants, estimated in by_mesh.values():
        last = sorted(found, key=lambda each: each.seconds)[BEST - 1] if len(found) >= BEST else None
        if last and estimated > MARGIN * last.seconds:
            break
        if show:
            show("layouts planned", len(found), min(BEST, len(by_mesh)))
        for choice in variants[:TRIES]:
            planned = planned_exactly(reload, choice, memory, hardware)
            if planned is not None:
                found.append(planned)
                break
    return sorted(found, key=lambda each: each.seconds)[:BEST]


def planned_exactly(reload: Reload, choice: LayoutChoice, memory: DeviceMemory, hardware: Hardware) -> Found | None:
    """The exact plan of a choice; None where it is refused, does not fit, or its step time is not known."""
    try:
        resolved, data_layout = reload(choice.overrides())
        batch = check_batch(resolved, choice.data * choice.pipe * choice.tensor)
    except UserError:
        return None
    job = without_auto(resolved.value, memory.gpu)
    plan = make_plan(resolve_layout(job, data_layout.windows, batch, data_layout.sizes), data_layout)
    time = step_time(plan, hardware)
    return Found(choice, plan, time) if memory.holds(plan) and time.seconds is not None else None


def _rounded(seconds: float | None) -> float:
    """Seconds to three digits: differences below are not those of the layouts."""
    return float("inf") if seconds is None else float(f"{seconds:.3g}")
