"""What backward of a block and of the head needs, counted by running them once on tensors without memory.

The model's own code runs, forward and backward, under torch's fake tensors: operators work out shapes and types and compute
nothing. So the count follows the model whatever changes in it. Operators are those that this machine would use; a GPU's
norms are fused and keep less than a CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sleep_kernels.linear_cross_entropy import backward as head_backward
from sleep_kernels.linear_cross_entropy import forward as head_forward
from sleeptrain.execute.segments import (
    Segment,
    block_segments,
    forward_no_grad,
    forward_with_grad,
    loss_segment,
    norm_segment,
    vjp,
)
from sleeptrain.model.config import Model
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import State, leaves
from sleeptrain.plan.ownership import on_meta
from sleeptrain.program import Pass, Sleep, Window, compile


@dataclass(frozen=True)
class SegmentMemory:
    """One block, or the head, over one window of one micro-batch; bytes of all rows together."""

    kept: int
    """What its graph keeps for backward, its input and the weights left out."""
    work: int
    """The most that exists beside that while it runs forward or back, gradients of its weights included."""


@dataclass(frozen=True)
class ActivationMemory:
    """What the parts of a model keep for backward over a window of `tokens` tokens."""

    rows: int
    tokens: int
    blocks: Mapping[str, SegmentMemory]
    """By letter of the pattern; attention with an empty cache."""
    cached: SegmentMemory | None
    """Attention after a full cache of `tokens - 1`; None where the program never reads one."""
    head: SegmentMemory
    norm: SegmentMemory
    """The final norm alone, and any other norm of the stream."""


@lru_cache(maxsize=16)
def measure_activations(
    model: Model, sleep: Sleep, rows: int, tokens: int, dtype: torch.dtype, padded: bool
) -> ActivationMemory:
    """Run every kind of block of a model, and its head, once over one window of `rows` x `tokens` without memory.

    `dtype` is that of parameters and features; `padded`: some tokens are padding.
    """
    # One block of each kind is enough.
    small = replace(model, layers="".join(sorted(set(model.pattern))))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    meta = on_meta(small)
    shapes = {name: p.shape for name, p in meta.named_parameters()}
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weights = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        meta.load_state_dict(weights, assign=True)
        windows = [Window(0, tokens, True), Window(tokens, 2 * tokens, True)]
        ops = [op for op in compile(sleep, windows, len(small.pattern)).ops if isinstance(op, Pass)]
        first, last = ops[0], ops[-1]
        ids = torch.zeros(rows, 2 * tokens, dtype=torch.int64, device=device)
        valid = torch.ones(rows, 2 * tokens, dtype=torch.bool, device=device) if padded else None
        empty = State.zeros(leaves(small, sleep, dtype), rows, device)
        h = torch.empty(rows, tokens, small.width, dtype=dtype, device=device)

        def graph(op: Pass, state: State, unit: Segment) -> SegmentMemory:
            held = [*weights.values(), *meta.parameters(), ids, h, *state.tensors.values()]
            return _counted(unit, h, state, held if valid is None else [*held, valid])

        def of(op: Pass, state: State) -> dict[str, SegmentMemory]:
            batch = MicroBatch(ids, ids, state, valid)
            units = block_segments(meta, op, (0, len(small.pattern)), sleep.window, batch, None)
            return {letter: graph(op, state, unit) for letter, unit in zip(small.pattern, units, strict=True)}

        blocks, cached = of(first, empty), None
        if last.kv_read and "A" in small.pattern:
            kv = {
                f.name: torch.empty(rows, *f.shape, dtype=f.dtype, device=device) for f in empty.spec if f.kind == "kv"
            }
            cached = of(last, empty.replace(kv))["A"]
        scored = graph(first, empty, loss_segment(meta, first, MicroBatch(ids, ids, empty, valid)))
        return ActivationMemory(rows, tokens, blocks, cached, scored, graph(first, empty, norm_segment(meta)))


def _counted(unit: Segment, h: Tensor, state: State, held: Iterable[Tensor]) -> SegmentMemory:
    """A unit's graph, and the most that exists beside it."""
    there, back = LiveBytes(held), LiveBytes(held)
    with there:
        forward_no_grad(unit, h, state.tensors)
    with back:
        node = forward_with_grad(unit, h, state.tensors, grad_leaves=unit.leaves)
    known, kept = {_id(tensor) for tensor in held}, 0
    for tensor in node.saved():
        if _id(tensor) not in known:
            known.add(_id(tensor))
            kept += tensor.untyped_storage().nbytes()
    adjoints = {name: torch.empty_like(value) for name, value in node.changed.items() if value.is_floating_point()}
    with back:
        vjp(node, torch.empty_like(node.out), adjoints)
    return SegmentMemory(kept, max(there.peak, back.peak - kept))


def _id(tensor: Tensor) -> int:
    """What memory a tensor is in, whether that memory exists or not."""
    return tensor.untyped_storage()._cdata


_SEEN_THROUGH: Mapping[Any, Callable[..., Any]] = {
    torch.ops.sleep_kernels.linear_cross_entropy.default: head_forward,
    torch.ops.sleep_kernels.linear_cross_entropy_backward.default: head_backward,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, for as long as something holds them; `held` ones are not counted."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._held = {_id(tensor) for tensor in held}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and look at what exists after it, and while it runs where that may be much."""
        if func in _SEEN_THROUGH:
            with self:
                out = _SEEN_THROUGH[func](*args)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _id(tensor) not in self._held | self._made.keys():
                storage = tensor.untyped_storage()
                self._made[_id(tensor)] = StorageWeakRef(storage), storage.nbytes()
        self._made = {key: (ref, size) for key, (ref, size) in self._made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return out
