"""Kernel selection: chooses the implementation of the fast-weight operators once, before the first step of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from sleep_kernels.comparison import Shape
from sleep_kernels.dispatch import fallback_reason
from sleep_kernels.passed_shapes import PassedShapes
from sleep_kernels.self_test import self_test
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.model.deltanet import DeltaNet
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.process import Process
from sleeptrain.program import Window
from sleeptrain.train.config import Train

_LOG = logging.getLogger("sleeptrain")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""dtype of parameters and activations by `train.precision`."""


def check_kernels(model: Model, train: Train, windows: Iterable[Window], device: torch.device) -> None:
    """Raise UserError if `train.kernels` requires fused kernels and this process's device has none for `model`.

    Does not run kernels, so that it can run before the model is built and the run folder is written.
    """
    if train.kernels != "require_fused" or "G" not in model.pattern or not _lengths(windows):
        return
    if obstacle := fallback_reason(device, DTYPES[train.precision], model.deltanet.head_dim, model.deltanet.d_v):
        raise UserError(_refusal(obstacle))


def use_kernels(model: LanguageModel, train: Train, windows: Iterable[Window], rows: int, process: Process) -> None:
    """Set the backend of every Gated DeltaNet block of `model` according to `train.kernels`; a collective.

    On a GPU with verified fused kernels, this run's shapes (`windows` of tokens by `rows` rows) are first compared with the
    float64 reference, including gradients of the state, unless they have passed on such a machine before. This takes seconds and
    compiles kernels that the run needs anyway.
    All processes choose the same backend. If one cannot use fused kernels, `auto` logs the reason once and uses plain torch;
    `require_fused` raises UserError on all ranks, with the message on rank 0. `auto` on a CPU uses plain torch without a
    comparison or a message.
    """
    mixers, windows = [module for module in model.modules() if isinstance(module, DeltaNet)], list(windows)
    backend = "chunked"
    if train.kernels == "require_fused" or (train.kernels == "auto" and process.device.type != "cpu"):
        shapes = [_shape(mixer, train, length, rows) for mixer in mixers for length in _lengths(windows)]
        obstacle = _first_obstacle(_unequal_sizes(mixers) or _obstacle(shapes, process.device), process)
        if obstacle is None:
            backend = "auto"
        elif train.kernels == "require_fused":
            raise UserError(_refusal(obstacle) if process.rank == 0 else [])
        elif process.rank == 0:
            _LOG.warning("using plain torch instead of fused kernels: %s", obstacle)
    for mixer in mixers:
        mixer.backend = backend


def _refusal(obstacle: str) -> str:
    return f"train.kernels = require_fused, but {obstacle}; use train.kernels=auto to train in plain torch"


def _lengths(windows: Iterable[Window]) -> list[int]:
    """Distinct window lengths that fused kernels support; single tokens run in plain torch by design."""
    return sorted({window.stop - window.start for window in windows} - {1})


def _shape(mixer: DeltaNet, train: Train, time: int, rows: int) -> Shape:
    c = mixer.config
    return Shape(rows, time, c.key_heads, c.value_heads, c.head_dim, DTYPES[train.precision], c.conv)


def _unequal_sizes(mixers: Sequence[DeltaNet]) -> str | None:
    """The reason why fused kernels cannot run some mixers, whatever the device."""
    for config in (mixer.config for mixer in mixers if mixer.config.d_v != mixer.config.head_dim):
        return f"they take keys and values of one size, and those of the model have {config.head_dim} and {config.d_v}"
    return None


def _obstacle(shapes: Sequence[Shape], device: torch.device) -> str | None:
    """The reason why fused kernels cannot run these shapes on `device`; None if they can."""
    for shape in shapes:
        if reason := fallback_reason(device, shape.dtype, shape.d, shape.d):
            return reason
    if not shapes:
        return None
    passed = PassedShapes.of(device)
    for result in self_test(device, passed.missing(dict.fromkeys(shape.reduced() for shape in shapes))):
        passed.keep(result)
        if not result.ok:
            return f"the fused kernels' error against the float64 reference exceeds the bound on this run's shapes ({result})"
    return None


def _first_obstacle(obstacle: str | None, process: Process) -> str | None:
    """All-gathers the obstacles and returns that of the lowest rank with one, on all ranks; None if no rank has one."""
    if process.world == 1:
        return obstacle
    obstacles: list[str | None] = [None] * process.world
    dist.all_gather_object(obstacles, obstacle)
    return next((f"rank {rank}: {text}" if rank else text for rank, text in enumerate(obstacles) if text), None)
