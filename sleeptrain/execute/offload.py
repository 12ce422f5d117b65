"""Activation offload: moves saved activations to pinned host memory and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleeptrain.execute.segment_chain import SavedBlocks


@dataclass(frozen=True)
class Offloaded:
    """A tensor in host memory and the device to which it returns."""

    tensor: Tensor
    device: torch.device


@dataclass(frozen=True)
class Offloader:
    """Moves tensors, dicts and lists of tensors, and inputs of blocks to host memory; all else, such as graphs, stays on the device."""

    enabled: bool = False
    """`train.offload`; nothing calls `put` otherwise."""

    def put(self, value: Any) -> Any:
        """Copy a value to host memory.

        On a GPU the copy is queued on the current stream, behind the kernels that compute the value, so that its device
        memory may be reused at once.
        """
        match value:
            case Tensor():
                host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                return Offloaded(host.copy_(value, non_blocking=True), value.device)
            case dict():
                return {name: self.put(one) for name, one in value.items()}
            case list():
                return [self.put(one) for one in value]
            case SavedBlocks(inputs, products):
                return SavedBlocks(self.put(inputs), products)
        return value

    def get(self, value: Any) -> Any:
        """The value on the device that it came from."""
        match value:
            case Offloaded(tensor, device):
                return tensor.to(device, non_blocking=True)
            case dict():
                return {name: self.get(one) for name, one in value.items()}
            case list():
                return [self.get(one) for one in value]
            case SavedBlocks(inputs, products):
                return SavedBlocks(self.get(inputs), products)
        return value
