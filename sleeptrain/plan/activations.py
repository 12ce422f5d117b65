"""Activation memory of a block and of the head, measured by running them once on fake tensors.

The model's own code runs forward and backward under torch's FakeTensorMode: operators infer shapes and dtypes and compute
nothing. The estimate therefore follows every change of the model. The operators are those of this machine; a GPU's norms
are fused and save less than a CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sleep_kernels.linear_cross_entropy import backward as head_backward
from sleep_kernels.linear_cross_entropy import forward as head_forward
from sleeptrain.execute.activation_checkpoint import COMPILED_WRAPPERS
from sleeptrain.execute.products import record, tensors_of
from sleeptrain.execute.segments import (
    PassTokens,
    Segment,
    SegmentGraph,
    block_segments,
    forward_no_grad,
    forward_with_grad,
    loss_segment,
    norm_segment,
    vjp,
)
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.config import Model
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.stack import Block
from sleeptrain.model.state import State, leaves
from sleeptrain.model.token_mask import MaskName, TokenMask
from sleeptrain.model.trained import ALL_TRAINED, TrainedWeights
from sleeptrain.plan.block_kinds import BlockKind, block_kinds, freeze_kinds
from sleeptrain.plan.ownership import on_meta
from sleeptrain.program import Pass, Sleep, Window, compile


@dataclass(frozen=True)
class SegmentMemory:
    """Memory of one block, or the head, over one window of one micro-batch, in bytes of all rows."""

    kept: int
    """Activations that its graph saves for backward, without its input and the weights."""
    work: int
    """Peak of all other memory during its forward or backward, including gradients of its weights."""
    products: int = 0
    """What selective recompute saves between forward and backward, without its input and the state that it leaves."""
    beside: int = 0
    """Activations that its graph saves beside those, once it is recomputed."""


@dataclass(frozen=True)
class ActivationOptions:
    """What saved activations depend on besides sizes."""

    mask: MaskName | None = None
    """The tensor of `TokenMask` that passes have."""
    compiled: Literal["none", "selective"] | None = None
    """`Train.compiled`: what a block saves is then measured in the graphs that `train.compile` makes of it; all its memory together is at
    most that of the uncompiled block, and counted as such."""
    z_loss: float = 0.0
    """`train.z_loss`."""
    trained: TrainedWeights = ALL_TRAINED


DEFAULTS = ActivationOptions()


@dataclass(frozen=True)
class ActivationMemory:
    """Activation memory of the segments of a model over a window of `tokens` tokens."""

    rows: int
    tokens: int
    blocks: Mapping[BlockKind, SegmentMemory]
    """By kind of block; attention with an empty cache."""
    cached: Mapping[BlockKind, SegmentMemory]
    """Attention by kind, with a full cache of `tokens - 1`; empty if the program never reads a cache."""
    head: SegmentMemory
    norm: SegmentMemory
    """The final norm, or any other norm of the residual stream."""


@lru_cache(maxsize=16)
def measure_activations(
    model: Model, sleep: Sleep, rows: int, tokens: int, dtype: torch.dtype,
    options: ActivationOptions = DEFAULTS,
) -> ActivationMemory:  # fmt: skip
    """Measure every kind of block of a model, and its head, over one window of `rows` x `tokens` on fake tensors.

    `dtype` is that of parameters and activations.
    """
    # One block of each kind suffices.
    kinds, compiled = list(dict.fromkeys(block_kinds(model, options.trained))), options.compiled
    small = replace(model, layers="".join(kind.letter for kind in kinds))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    meta = on_meta(small)
    shapes = {name: p.shape for name, p in meta.named_parameters()}
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weights = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        meta.load_state_dict(weights, assign=True)
        meta.z_loss = options.z_loss
        traced = meta
        if compiled:
            traced = on_meta(small)
            traced.load_state_dict(weights, assign=True)
            compile_blocks(traced, partitioned_eager(), COMPILED_WRAPPERS[compiled])
        for each in (meta, traced):
            for block in each.layers:
                assert isinstance(block, Block)
                block.place_joint_weights()
            freeze_kinds(each, kinds, options.trained)
        windows = [Window(0, tokens, True), Window(tokens, 2 * tokens, True)]
        whole = replace(sleep, loop=replace(sleep.loop, layers="all"))  # a range counts the blocks of the model
        ops = [op for op in compile(whole, windows, len(small.pattern)).ops if isinstance(op, Pass)]
        first, last = ops[0], ops[-1]
        ids = torch.zeros(rows, 2 * tokens, dtype=torch.int64, device=device)
        read = torch.ones(rows, tokens, dtype=torch.bool, device=device)
        token_mask = TokenMask.from_named({} if options.mask is None else {str(options.mask): read})
        empty = State.zeros(leaves(small, sleep, dtype), rows, device)
        h = torch.empty(rows, tokens, small.width, dtype=dtype, device=device)

        def inputs(state: State) -> list[Tensor]:
            found = [*weights.values(), *meta.parameters(), *traced.parameters(), ids, h, *state.tensors.values()]
            return [*found, *token_mask.named().values()]

        def measure(state: State, segment: Segment) -> SegmentMemory:
            return _measure_segment(segment, h, state, inputs(state))

        def measure_blocks(op: Pass, state: State) -> dict[BlockKind, SegmentMemory]:
            blocks, read = (0, len(small.pattern)), PassTokens(ids[:, op.start : op.stop], token_mask)
            eager, graphs = (
                block_segments(m, op, blocks, sleep.window, state.spec, read, None) for m in (meta, traced)
            )
            found = [measure(state, segment) for segment in eager]
            if compiled:
                kept = [_saved_bytes(_graph(segment, h, state), inputs(state)) for segment in graphs]
                # What its graph does not save is computed again in backward.
                found = [
                    replace(each, kept=size, work=each.work + max(0, each.kept - size))
                    for each, size in zip(found, kept, strict=True)
                ]
            return dict(zip(kinds, found, strict=True))

        blocks, cached = measure_blocks(first, empty), dict[BlockKind, SegmentMemory]()
        if last.kv_read and set(small.pattern) != {"G"}:
            kv = {
                f.name: torch.empty(rows, *f.shape, dtype=f.dtype, device=device) for f in empty.spec if f.kind == "kv"
            }
            cached = {kind: m for kind, m in measure_blocks(last, empty.replace(kv)).items() if kind.letter != "G"}
        head = measure(empty, loss_segment(meta, first, MicroBatch(ids, ids, empty)))
        return ActivationMemory(rows, tokens, blocks, cached, head, measure(empty, norm_segment(meta)))


def _measure_segment(segment: Segment, h: Tensor, state: State, inputs: Iterable[Tensor]) -> SegmentMemory:
    """Memory of a segment's saved activations, and the peak of all other memory; `inputs` are not counted."""
    forward, backward = LiveBytes(inputs), LiveBytes(inputs)
    with forward:
        forward_no_grad(segment, h, state.tensors)
    with backward:
        node = _graph(segment, h, state)
    kept = _saved_bytes(node, inputs)
    adjoints = {name: torch.empty_like(value) for name, value in node.changed.items() if value.is_floating_point()}
    with backward:
        vjp(node, torch.empty_like(node.out), adjoints)
    return SegmentMemory(kept, max(forward.peak, backward.peak - kept), *_selective_bytes(segment, h, state, inputs))


def _selective_bytes(segment: Segment, h: Tensor, state: State, inputs: Iterable[Tensor]) -> tuple[int, int]:
    """`products` and `beside` of a segment."""
    graph, recorded = record(lambda: _graph(segment, h, state))
    products = tensors_of(recorded)
    left = [value for leaf in state.spec if leaf.kind != "kv" and (value := graph.changed.get(leaf.name)) is not None]
    return _bytes(products, [*inputs, *left]), _saved_bytes(graph, [*inputs, *products])


def _graph(segment: Segment, h: Tensor, state: State) -> SegmentGraph:
    return forward_with_grad(segment, h, state.tensors, grad_leaves=segment.leaves)


def _saved_bytes(graph: SegmentGraph, inputs: Iterable[Tensor]) -> int:
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
