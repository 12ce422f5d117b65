"""Memory of one segment, a block or the head, measured by running it once on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sleep_kernels.linear_cross_entropy import backward as head_backward
from sleep_kernels.linear_cross_entropy import forward as head_forward
from sleeptrain.execute.products import record, tensors_of
from sleeptrain.execute.segments import Segment, SegmentGraph, forward_no_grad, forward_with_grad, vjp
from sleeptrain.model.state import State


@dataclass(frozen=True)
class SegmentMemory:
    """Memory of one block, or the head, over one window of one micro-batch, in bytes of all rows."""

    kept: int
    """Activations that its graph saves for backward, without its input and the weights."""
    work: int
    """Peak of all other memory during its forward or backward, including gradients of its weights."""
    state: int = 0
    """Of `kept`: what the new state depends on, where the features have no gradient."""
    products: int = 0
    """What selective recompute saves between forward and backward, without its input and the state that it leaves."""
    beside: int = 0
    """Activations that its graph saves beside those, once it is recomputed."""
    peak: int = 0
    """Peak of all memory during its forward without a graph, or its forward and backward with one."""


def measure_segment(segment: Segment, h: Tensor, state: State, inputs: Iterable[Tensor]) -> SegmentMemory:
    """Memory of a segment's saved activations, and the peak of all other memory; `inputs` are not counted."""
    forward, backward = LiveBytes(inputs), LiveBytes(inputs)
    with forward:
        forward_no_grad(segment, h, state.tensors)
    with backward:
        node = graph_of(segment, h, state)
    kept, state_alone = saved_bytes(node, inputs), saved_bytes(replace(node, out=node.out.detach()), inputs)
    adjoints = {name: torch.empty_like(value) for name, value in node.changed.items() if value.is_floating_point()}
    with backward:
        vjp(node, torch.empty_like(node.out), adjoints)
    work = max(forward.peak, backward.peak - kept)
    products, beside = _selective_bytes(segment, h, state, inputs)
    return SegmentMemory(kept, work, state_alone, products, beside, max(forward.peak, backward.peak))


def _selective_bytes(segment: Segment, h: Tensor, state: State, inputs: Iterable[Tensor]) -> tuple[int, int]:
    """`products` and `beside` of a segment."""
    graph, recorded = record(lambda: graph_of(segment, h, state))
    products = tensors_of(recorded)
    left = [value for leaf in state.spec if leaf.kind != "kv" and (value := graph.changed.get(leaf.name)) is not None]
    return _bytes(products, [*inputs, *left]), saved_bytes(graph, [*inputs, *products])


def graph_of(segment: Segment, h: Tensor, state: State) -> SegmentGraph:
    return forward_with_grad(segment, h, state.tensors, grad_leaves=segment.leaves)


def saved_bytes(graph: SegmentGraph, inputs: Iterable[Tensor]) -> int:
    """Bytes that a graph saves for backward; `inputs` are not counted."""
    return _bytes(graph.saved(), inputs)


def _bytes(tensors: Iterable[Tensor], counted: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, without those of `counted` ones."""
    known, sizes = {_id(tensor) for tensor in counted}, {_id(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for storage, size in sizes.items() if storage not in known)


def _id(tensor: Tensor) -> int:
    """Identity of a tensor's storage, also of a fake one."""
    return tensor.untyped_storage()._cdata


_DECOMPOSED: Mapping[Any, Callable[..., Any]] = {
    torch.ops.sleep_kernels.linear_cross_entropy.default: head_forward,
    torch.ops.sleep_kernels.linear_cross_entropy_backward.default: head_backward,
}


class LiveBytes(TorchDispatchMode):
    """Tracks the peak bytes of live storages that operators allocate; storages of `inputs` are not counted."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._inputs = {_id(tensor) for tensor in inputs}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and update the peak; operators with large temporaries are traced inside."""
        if func in _DECOMPOSED:
            with self:
                out = _DECOMPOSED[func](*args)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _id(tensor) not in self._inputs | self._live.keys():
                storage = tensor.untyped_storage()
                self._live[_id(tensor)] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out
