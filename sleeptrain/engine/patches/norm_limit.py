"""Makes DeepSpeed skip a step whose gradient norm is above a limit, as it skips one whose norm is not finite."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

MODULES = ("zero.stage_1_and_2", "zero.stage3", "bf16_optimizer")
"""Modules of deepspeed.runtime whose optimizers ask `is_invalid_grad_norm` whether to skip."""


@contextmanager
def norm_limit(limit: float) -> Iterator[list[float]]:
    """In the block a step is skipped on all ranks where its norm, which all ranks know, is above `limit`. Yields a list that gets it.

    DeepSpeed 0.19.8 computes the norm inside the step and has no hook between norm and update. Without this, a finite norm of
    any size is clipped and applied. Without a limit nothing is changed, and the list stays empty.
    """
    norms: list[float] = []
    with ExitStack() as stack:
        if not math.isfinite(limit):
            yield norms
            return
        for name in MODULES:
            module = importlib.import_module(f"deepspeed.runtime.{name}")
            original = module.is_invalid_grad_norm

            def is_invalid(norm: Any, original: Any = original) -> bool:
                if norms or original(norm):  # after the first answer it is asked about other numbers
                    return bool(original(norm))
                norms.append(float(norm))
                return norms[-1] > limit

            stack.enter_context(mock.patch.object(module, "is_invalid_grad_norm", is_invalid))
        yield norms
