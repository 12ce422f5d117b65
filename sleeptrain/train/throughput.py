"""How fast and how large a run is on its device: model FLOPs of a step, MFU against the device's peak, peak memory."""

from __future__ import annotations

import resource
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.program import Program, Sleep

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendors' data sheets, by a word of the device's name."""


def peak_flops(precision: str) -> float | None:
    """Peak FLOPs a second of this process's device in a precision; None where it is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None) if precision == "bf16" else None


def mfu(flops_per_second: float, precision: str, world: int) -> float | None:
    """Model FLOPs utilisation: the share of the peak of `world` devices; None where the peak is unknown."""
    peak = peak_flops(precision)
    return flops_per_second / (peak * world) if peak else None


@lru_cache(maxsize=64)
def row_flops(model: Model, program: Program, sleep: Sleep) -> float:
    """Model FLOPs of one row, forward and backward. Passes count, recompute does not."""
    return step_flops(model, program, sleep)


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
