"""The memory of a device, against which a plan is held."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from sleeptrain.engine.build import device_memory
from sleeptrain.plan.memory import size
from sleeptrain.plan.plan import Plan

USABLE = 0.9
"""Share of the memory that a plan may fill. The rest is for the driver, NCCL, fragmentation, and what a plan does not count."""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory that one process may use."""

    total: float
    """Bytes."""
    what: str
    """Whose it is, for messages."""
    gpu: bool = False
    """Whether it is a GPU's: `train.compile: auto` and `train.cuda_graphs: auto` may be on there."""

    @property
    def usable(self) -> float:
        """Bytes that a plan may fill."""
        return USABLE * self.total

    def holds(self, plan: Plan) -> bool:
        """Whether every process of a plan fits."""
        return needed(plan) <= self.usable

    def __str__(self) -> str:
        return f"{size(self.usable)} that a plan may fill ({USABLE:.0%} of {size(self.total)}, {self.what})"


def process_memory(device: torch.device) -> DeviceMemory:
    """The memory of a GPU, or this machine's available memory divided by the processes that were started on it."""
    if (of_gpu := device_memory(device)) is not None:
        return DeviceMemory(float(of_gpu), torch.cuda.get_device_name(device), gpu=True)
    import psutil

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # checked by rank_and_world
    shared = f", shared by {local} processes" if local > 1 else ""
    return DeviceMemory(psutil.virtual_memory().available / local, f"this machine's free memory{shared}")


def needed(plan: Plan) -> float:
    """Planned bytes of the process that needs most."""
    return max(memory.total for memory in plan.memory)
