"""Makes DeepSpeed skip a step whose gradient norm is above a limit, as it skips one whose norm is not finite."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from sleeptrain.parallel.process import Process

MODULES = ("zero.stage_1_and_2", "zero.stage3", "bf16_optimizer")
"""Modules of deepspeed.runtime whose optimizers ask `is_invalid_grad_norm` whether to skip."""


@contextmanager
def norm_limit(limit: float, process: Process) -> Iterator[list[float]]:
    """In the block a step is skipped on all ranks where its norm is above `limit` on some rank. Yields a list that gets the norm.

    Ranks may have other last bits of norm and limit, so they agree: a step that some skip and others make would leave them with
    different parameters, or waiting for each other. All ranks have a limit, or none has.
    DeepSpeed 0.19.8 computes the norm inside the step and has no hook between norm and update. Without this, a finite norm of
    any size is clipped and applied. Without a limit nothing is changed, and the list stays empty.
    """
    norms: list[float] = []
    if not math.isfinite(limit):
        yield norms
        return
    modules = [importlib.import_module(f"deepspeed.runtime.{name}") for name in MODULES]
    originals = [module.is_invalid_grad_norm for module in modules]
    answers: list[bool] = []

    def is_invalid(norm: Any) -> bool:
        invalid = bool(originals[0](norm))
        if answers:  # after the first answer it is asked about other numbers
            return invalid
        if not invalid:
            norms.append(float(norm))
        skips = torch.tensor(int(invalid or norms[0] > limit), device=process.device)
        if process.world > 1:
            dist.all_reduce(skips, dist.ReduceOp.MAX)
        answers.append(bool(skips))
        return answers[0]

    try:
        for module in modules:
            module.is_invalid_grad_norm = is_invalid  # type: ignore[attr-defined]
        yield norms
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.is_invalid_grad_norm = original  # type: ignore[attr-defined]
