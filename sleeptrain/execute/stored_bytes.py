"""The bytes that a stage holds on its device, by component of the planner's memory estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sleeptrain.execute.p2p import PendingRecv
from sleeptrain.execute.products import tensors_of
from sleeptrain.execute.segment_chain import SavedBlocks
from sleeptrain.execute.segments import SegmentGraph
from sleeptrain.model.state import Leaf
from sleeptrain.schedule import Value
from sleeptrain.schedule.value_bytes import COMPONENTS

STATE_COMPONENTS = {"fast": "S", "conv": "conv", "kv": "kv"}
"""The component of a state leaf by its kind."""


class ByteCounter:
    """Counts the bytes of tensors by component. Every storage counts once; the storages of `known` tensors do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.by_component = dict.fromkeys(COMPONENTS, 0)
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}

    def add(self, component: str, tensors: Iterable[Tensor]) -> None:
        """Count the whole storage of each tensor, because a view keeps all of it alive."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.by_component[component] += storage.nbytes()


def count_stored(counter: ByteCounter, values: Mapping[Value, Any], stage: int, spec: Iterable[Leaf]) -> None:
    """Count the stored values of a stage. Graphs come last: storages that they share with other values count there."""
    components = {leaf.name: STATE_COMPONENTS[leaf.kind] for leaf in spec if leaf.kind in STATE_COMPONENTS}
    for value, stored in sorted(values.items(), key=lambda pair: pair[0].kind in ("graph", "head", "blocks")):
        match value.kind:
            case "S" | "kv":
                for name, leaf in stored.items():
                    counter.add(components[name], _tensors(leaf))
            case "h":
                counter.add("h" if value.stage == stage else "received h", _tensors(stored))
            case "graph" | "head" | "blocks":
                counter.add("body", _tensors(stored))
            case _:
                counter.add("gradients", _tensors(stored))


def _tensors(stored: Any) -> list[Tensor]:
    """The tensors of a stored value on the device; offloaded ones do not count."""
    match stored:
        case Tensor():
            return [stored]
        case SegmentGraph():
            return stored.held()
        case SavedBlocks(inputs, products):
            return [*_tensors(inputs), *tensors_of(products)]
        case PendingRecv():
            return [stored.buffer]
        case dict():
            return [tensor for one in stored.values() for tensor in _tensors(one)]
        case list():
            return [tensor for one in stored for tensor in _tensors(one)]
    return []
