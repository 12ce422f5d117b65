"""Which implementation of the operators a run uses, chosen once before its first step: `train.kernels` and this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from sleep_kernels.comparison import Shape
from sleep_kernels.dispatch import fallback_reason
from sleep_kernels.self_test import self_test
from sleeptrain.config import UserError
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
    """Raise UserError where `train.kernels` requires fused kernels and none is there for `model` on this process's device: as
    much as can be known before anything is built or written."""
    if train.kernels != "require_fused" or "G" not in model.pattern or not _lengths(windows):
        return
    d = model.deltanet.head_dim
    if obstacle := fallback_reason(device, DTYPES[train.precision], d, d):
        raise UserError(_refusal(obstacle))


def use_kernels(model: LanguageModel, train: Train, windows: Iterable[Window], rows: int, process: Process) -> None:
    """Tell every Gated DeltaNet block of `model` which implementation to call, as `train.kernels` says.

    On a GPU where fused kernels are verified, this run's shapes (`windows` of tokens by `rows` rows) are first compared
    with the float64 reference, gradients of the state among them: seconds, and what compiles meanwhile the run needs
    anyway. All processes decide alike, which is a collective. Under `auto` what stands in the way is said once and plain
    torch used; under `require_fused` it is a UserError on all ranks, with the text on the first. `auto` on a CPU is plain
    torch, and nothing is run or said.
    """
    mixers, windows = [module for module in model.modules() if isinstance(module, DeltaNet)], list(windows)
    backend = "chunked"
    if train.kernels == "require_fused" or (train.kernels == "auto" and process.device.type != "cpu"):
        shapes = [_shape(mixer, train, length, rows) for mixer in mixers for length in _lengths(windows)]
        obstacle = _first(_obstacle(shapes, process.device), process)
        if obstacle is None:
            backend = "auto"
        elif train.kernels == "require_fused":
            raise UserError(_refusal(obstacle) if process.rank == 0 else [])
        elif process.rank == 0:
            _LOG.warning("plain torch is used instead of fused kernels: %s", obstacle)
    for mixer in mixers:
        mixer.backend = backend


def _refusal(obstacle: str) -> str:
    return f"train.kernels = require_fused, but {obstacle}; train.kernels=auto trains in plain torch"


def _lengths(windows: Iterable[Window]) -> list[int]:
    """Of windows for which there are fused kernels: a single token is left to plain torch by design."""
    return sorted({window.stop - window.start for window in windows} - {1})


def _shape(mixer: DeltaNet, train: Train, time: int, rows: int) -> Shape:
    c = mixer.config
    return Shape(rows, time, c.key_heads, c.value_heads, c.head_dim, DTYPES[train.precision], c.conv)


def _obstacle(shapes: Sequence[Shape], device: torch.device) -> str | None:
    """What keeps the fused kernels from being used for these shapes here, None if nothing does."""
    for shape in shapes:
        if reason := fallback_reason(device, shape.dtype, shape.d, shape.d):
            return reason
    for result in self_test(device, dict.fromkeys(shape.reduced() for shape in shapes)):
        if not result.ok:
            return f"they missed the float64 reference on this run's shapes ({result})"
    return None


def _first(obstacle: str | None, process: Process) -> str | None:
    """The first rank's obstacle that has one, on all ranks."""
    if process.world == 1:
        return obstacle
    found: list[str | None] = [None] * process.world
    dist.all_gather_object(found, obstacle)
    return next((f"rank {rank}: {said}" if rank else said for rank, said in enumerate(found) if said), None)
