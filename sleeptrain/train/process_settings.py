"""Settings of the Python process and of torch for a run: precision of products, determinism, garbage collection."""

from __future__ import annotations

import gc
import os
from types import TracebackType

import torch

from sleeptrain.train.config import Train

WORKSPACE = ":4096:8"
"""Workspace of cuBLAS with which its products are deterministic (CUBLAS_WORKSPACE_CONFIG)."""


def apply_settings(train: Train) -> None:
    """Set torch's precision of float32 products and its choice of algorithms; call it before the first work on a device."""
    torch.set_float32_matmul_precision(train.matmul_precision)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
        # torch would also fill every new tensor, to make uses of uninitialised memory repeatable.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(train.deterministic)
    torch.backends.cudnn.benchmark = False


class ScheduledCollection:
    """Garbage collection at steps that are multiples of `every`, as a context manager; 0: by Python's own schedule.

    Python's schedule depends on what a rank has allocated, so that ranks would pause at different moments, and all the others wait
    each time. What exists at the beginning is not searched.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def __enter__(self) -> ScheduledCollection:
        if self._every:
            gc.collect()
            gc.freeze()
            gc.disable()
        return self

    def after(self, step: int) -> None:
        """Collect if it is due."""
        if self._every and step % self._every == 0:
            gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._every:
            gc.unfreeze()
            gc.enable()
