"""Where the tape puts what it keeps for backward, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = ("h", "S", "conv", "kv", "body")
"""Features at the borders of passes and blocks, fast weights, convolution tails, attention caches, graphs."""
KINDS = {"fast": "S", "conv": "conv", "kv": "kv"}


@dataclass(frozen=True)
class Held:
    """A tensor that is kept, and where it belongs."""

    tensor: Tensor
    device: torch.device


@dataclass(frozen=True)
class Shelf:
    """Keeps tensors where they are or, with `offload`, in the host's memory."""

    offload: bool = False

    def put(self, tensor: Tensor) -> Held:
        """Keep a tensor. On a GPU the copy is queued behind what computes it, and its memory may be reused after."""
        if not self.offload:
            return Held(tensor, tensor.device)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        host.copy_(tensor, non_blocking=True)
        return Held(host, tensor.device)

    def get(self, held: Held) -> Tensor:
        """The tensor, on the device that it came from."""
        return held.tensor.to(held.device, non_blocking=True)

    def put_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Held]:
        """Keep several."""
        return {name: self.put(tensor) for name, tensor in tensors.items()}

    def get_all(self, held: Mapping[str, Held]) -> dict[str, Tensor]:
        """Several, by name."""
        return {name: self.get(one) for name, one in held.items()}


class Bytes:
    """Counts memory by component, each piece once, whoever else points to it; `known` memory counts nothing."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.by_component = dict.fromkeys(COMPONENTS, 0)
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def add(self, component: str, tensors: Iterable[Tensor]) -> None:
        """Count the whole storage behind each tensor: that is what keeping the tensor keeps alive."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.by_component[component] += storage.nbytes()
