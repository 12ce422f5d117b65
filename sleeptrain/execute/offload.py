"""Where what is kept for backward waits, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleeptrain.execute.segments import SegmentGraph
from sleeptrain.model.state import Leaf
from sleeptrain.schedule import Value
from sleeptrain.schedule.memory import COMPONENTS

STATE_COMPONENTS = {"fast": "S", "conv": "conv", "kv": "kv"}
"""Components by kind of leaf."""


@dataclass(frozen=True)
class Offloaded:
    """A tensor that is kept, and where it belongs."""

    tensor: Tensor
    device: torch.device


@dataclass(frozen=True)
class Offloader:
    """Keeps tensors where they are or, with `offload`, in the host's memory."""

    offload: bool = False

    def put(self, value: Any) -> Any:
        """Keep a tensor, or a list or dict of them; graphs stay where they are. On a GPU the copy is queued behind what
        computes it, and its memory may be reused after."""
        match value:
            case Tensor():
                host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                return Offloaded(host.copy_(value, non_blocking=True), value.device)
            case dict():
                return {name: self.put(one) for name, one in value.items()}
            case list():
                return [self.put(one) for one in value]
        return value

    def get(self, value: Any) -> Any:
        """What was kept, on the device that it came from."""
        match value:
            case Offloaded(tensor, device):
                return tensor.to(device, non_blocking=True)
            case dict():
                return {name: self.get(one) for name, one in value.items()}
            case list():
                return [self.get(one) for one in value]
        return value


class ByteCounter:
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


def count_stored(total: ByteCounter, values: Mapping[Value, Any], stage: int, spec: Iterable[Leaf]) -> None:
    """Add what a stage holds on its device. Graphs come last: what they share with others counts there."""
    kinds = {leaf.name: STATE_COMPONENTS[leaf.kind] for leaf in spec if leaf.kind in STATE_COMPONENTS}
    for value, held in sorted(values.items(), key=lambda pair: pair[0].kind in ("graph", "head", "blocks")):
        match value.kind:
            case "S" | "kv":
                for name, leaf in held.items():
                    total.add(kinds[name], _tensors(leaf))
            case "h":
                total.add("h" if value.stage == stage else "received h", _tensors(held))
            case "graph" | "head" | "blocks":
                total.add("body", _tensors(held))
            case _:
                total.add("gradients", _tensors(held))


def _tensors(held: Any) -> list[Tensor]:
    match held:
        case Tensor():
            return [held]
        case SegmentGraph():
            return held.saved()
        case dict():
            return [tensor for one in held.values() for tensor in _tensors(one)]
        case list():
            return [tensor for one in held for tensor in _tensors(one)]
    # On its way here; on the host it does not count.
    return [held.buffer] if hasattr(held, "buffer") else []
