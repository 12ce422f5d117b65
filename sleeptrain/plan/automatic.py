"""`train.compile: auto` and `train.cuda_graphs: auto`: what a run does on the device that it is planned for, or trained on.

On a CPU both are off. On a GPU each is on where no rule refuses it with the rest of the recipe. CUDA graphs also need memory beside the
plan, since a capture cannot give back what the allocator has cached, and passes without messages of other processes. Recipes and run
folders keep `auto`: another device may choose otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.plan.device import DeviceMemory, needed
from sleeptrain.plan.memory import size
from sleeptrain.plan.plan import make_plan
from sleeptrain.recipe.rule import reason
from sleeptrain.recipe.rules import RULES
from sleeptrain.train.job import Job
from sleeptrain.train.layout import COMPILE, CUDA_GRAPHS, Layout

J = TypeVar("J", bound=Job)
AUTO = "auto"


def without_auto(job: J, gpu: bool) -> J:
    """A job with `train.compile` chosen, and without the CUDA graphs that `auto` may add: what decides whether a layout fits."""
    if job.train.compile == AUTO:
        job = _with(job, COMPILE, gpu and _obstacle(job, COMPILE) is None)
    return _with(job, CUDA_GRAPHS, False) if job.train.cuda_graphs == AUTO else job


def resolve_auto(
    layout: Layout, data_layout: DataLayout, memory: DeviceMemory | None
) -> tuple[Layout, tuple[str, ...]]:
    """A layout with both chosen, and a line for each that `auto` leaves off on a GPU.

    `train.recompute` must be chosen already. `memory` of the device that is planned for; None: a CPU.
    """
    given, lines = layout.job, []
    gpu = memory is not None and memory.gpu
    job = without_auto(given, gpu)
    chosen = {COMPILE} if given.train.compile == AUTO and job.train.compile else set[str]()
    if gpu and given.train.compile == AUTO and not job.train.compile:
        lines.append(f"{COMPILE} is off (auto): {_obstacle(given, COMPILE)}")
    layout = dataclasses.replace(layout, job=job)
    if memory is not None and gpu and given.train.cuda_graphs == AUTO:
        obstacle = _obstacle(job, CUDA_GRAPHS) or _messages(job) or _no_room(layout, data_layout, memory)
        if obstacle is None:
            layout = dataclasses.replace(layout, job=_with(job, CUDA_GRAPHS, True))
            chosen.add(CUDA_GRAPHS)
        else:
            lines.append(f"{CUDA_GRAPHS} is off (auto): {obstacle}")
    return dataclasses.replace(layout, automatic=frozenset(chosen)), tuple(lines)


def _obstacle(job: Job, path: str) -> str | None:
    """The reason of the rule that refuses to turn a field on, if there is one."""
    on = _with(job, path, True)
    return next((reason(rule, on) for rule in RULES if path in rule.fields and rule.broken(on)), None)


def _messages(job: Job) -> str | None:
    """Why graphs are not captured unasked where processes communicate during or between passes."""
    whose = {"tensor parallelism": job.mesh.tensor, "pipeline stages": job.mesh.pipe}
    communicating = [name for name, size in whose.items() if size > 1]
    if not communicating:
        return None
    return f"no graph has been captured on a GPU with the messages of {' and '.join(communicating)}; train.cuda_graphs=true does it"


def _no_room(layout: Layout, data_layout: DataLayout, memory: DeviceMemory) -> str | None:
    """Why CUDA graphs do not fit beside the plan."""
    plan = make_plan(dataclasses.replace(layout, job=_with(layout.job, CUDA_GRAPHS, True)), data_layout)
    most = max(process.total + process.graphs for process in plan.memory)
    if most <= memory.usable:
        return None
    return f"with the memory of the graphs the plan's {size(needed(plan))} would be up to {size(most)} of the {memory}"


def _with(job: J, path: str, value: bool) -> J:
    changes: dict[str, Any] = {path.removeprefix("train."): value}
    return dataclasses.replace(job, train=dataclasses.replace(job.train, **changes))
