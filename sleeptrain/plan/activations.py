"""Activation memory of a block and of the head, measured by running them once on fake tensors.

The model's own code runs forward and backward under torch's FakeTensorMode: operators infer shapes and dtypes and compute
nothing. The estimate therefore follows every change of the model. The operators are those of this machine; a GPU's norms
are fused and save less than a CPU's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from sleeptrain.execute.activation_checkpoint import COMPILED_WRAPPERS
from sleeptrain.execute.segments import (
    PassTokens,
    Segment,
    SegmentOutputs,
    block_segments,
    loss_segment,
    norm_segment,
)
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.stack import Block
from sleeptrain.model.state import State, leaves
from sleeptrain.model.token_mask import MaskName, TokenMask
from sleeptrain.model.trained import ALL_TRAINED, TrainedWeights
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.vocab_cross_entropy import vocab_parallel_nll
from sleeptrain.plan.block_kinds import BlockKind, block_kinds, freeze_kinds
from sleeptrain.plan.ownership import on_meta
from sleeptrain.plan.segment_memory import SegmentMemory, graph_of, measure_segment, saved_bytes
from sleeptrain.program import Pass, Sleep, Window, compile


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
    joint: bool = True
    """Layers that read the same input have one product (`model.joint`), which then saves all their outputs together."""
    saves_inputs: bool = False
    """Linear layers save their input, whether or not their weight is trained, as DeepSpeed's do under ZeRO 3."""
    shard_rows: int | None = None
    """Rows of the vocabulary on the last process of a tensor axis, without padding; None: the vocabulary is not divided."""


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
                if options.joint:
                    block.place_joint_weights()
            if not options.saves_inputs:
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
            return measure_segment(segment, h, state, inputs(state))

        def measure_blocks(op: Pass, state: State) -> dict[BlockKind, SegmentMemory]:
            blocks, read = (0, len(small.pattern)), PassTokens(ids[:, op.start : op.stop], token_mask)
            eager, graphs = (
                block_segments(m, op, blocks, sleep.window, state.spec, read, None) for m in (meta, traced)
            )
            found = [measure(state, segment) for segment in eager]
            if compiled:
                kept = [saved_bytes(graph_of(segment, h, state), inputs(state)) for segment in graphs]
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
        head = measure(empty, _head_segment(meta, first, MicroBatch(ids, ids, empty), options))
        return ActivationMemory(rows, tokens, blocks, cached, head, measure(empty, norm_segment(meta)))


def _head_segment(model: LanguageModel, op: Pass, batch: MicroBatch, options: ActivationOptions) -> Segment:
    """The head; that of a process of the tensor axis without its collectives."""
    segment, rows = loss_segment(model, op, batch), options.shard_rows
    if rows is None:
        return segment
    _, targets, _ = batch.window(op)

    def run(h: Tensor | None, _: Mapping[str, Tensor]) -> SegmentOutputs:
        assert h is not None
        weight = model.embed.weight if model.head is None else model.head.weight
        return vocab_parallel_nll(model.norm(h), weight, targets, MeshAxis(0, 1, None), rows, options.z_loss), {}

    return Segment(run, segment.weights)
