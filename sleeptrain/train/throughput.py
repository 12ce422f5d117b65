"""How fast and how large a run is on its device: FLOPs of a step, their share of the device's peak (MFU, HFU), peak memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.model.counts import flops_of_work, forward_flops
from sleeptrain.model.trained import TrainedWeights
from sleeptrain.program import Pass, Program, Sleep
from sleeptrain.schedule import RecomputePolicy, Schedule, StageBlocks, build_schedule
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendors' data sheets, by a word of the device's name."""


def peak_flops(precision: str) -> float | None:
    """Peak FLOPs a second of this process's device in a precision; None where it is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None) if precision == "bf16" else None


def utilisation(flops_per_second: float, precision: str, world: int) -> float | None:
    """Share of the peak of `world` devices; None where the peak is unknown."""
    peak = peak_flops(precision)
    return flops_per_second / (peak * world) if peak else None


def model_flops(layout: Layout, program: Program, work: Tensor) -> float:
    """Model FLOPs of a step, forward and backward, whose rows have this work (`work_of_rows`). Passes count, recompute does not."""
    return float(
        (_for_each_unit(layout.job.model, program, layout.job.sleep, trained_weights(layout.job)) * work).sum()
    )


def recomputed_flops(layout: Layout, program: Program, work: Tensor) -> float:
    """FLOPs of forward work that a step of this work repeats in its backward, because activation checkpointing does not save it."""
    job = layout.job
    if job.train.schedule_policy == "none":
        return 0.0
    return float((recompute_flops(job.model, program, layout.stages, layout.recompute, layout.tied) * work).sum())


@lru_cache(maxsize=64)
def _for_each_unit(model: Model, program: Program, sleep: Sleep, trained: TrainedWeights) -> Tensor:
    """Model FLOPs for each unit of work, computed once for all steps of a program."""
    return flops_of_work(model, program, sleep, trained)


@lru_cache(maxsize=64)
def recompute_flops(
    model: Model, program: Program, stages: tuple[StageBlocks, ...], recompute: RecomputePolicy, tied: bool
) -> Tensor:
    """FLOPs that are recomputed for each unit of work on each window: float64 [windows, 2, 3]. Micro-batches do not differ in it."""
    group = len(stages)
    schedule = build_schedule(program, stages, group, recompute, tied)
    flops = torch.zeros(program.windows, 2, 3, dtype=torch.float64)
    for op, forward in _repeated(schedule, model):
        flops[op.window, int(op.last_document)] += forward
    return flops / group


def _repeated(schedule: Schedule, model: Model) -> Iterator[tuple[Pass, Tensor]]:
    """The passes whose forward the backward of a schedule repeats, on each stage, with its FLOPs for each unit of work."""
    for stage in schedule.stages:
        for action in stage.backward:
            if action.edge is not None or action.kind == "BWD":
                continue
            op = schedule.program.ops[action.op]
            assert isinstance(op, Pass)
            if action.kind == "RECOMPUTE" and schedule.recompute.body == "products":
                continue  # elementwise work alone, of which no FLOPs are counted
            if action.kind != "LOSS":
                yield op, forward_flops(model, stage.ops[action.op].blocks)
            elif schedule.recompute.body != "all":
                yield op, forward_flops(model, (0, 0), head=True)


def peak_memory() -> int:
    """Peak bytes of this process: allocated on its GPU, or resident on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # On Linux, ru_maxrss of a new program is not less than the memory of the process that started it.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
