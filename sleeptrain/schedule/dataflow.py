"""Dataflow between stage ops: producers and consumers of features, state and caches, and where gradients flow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from sleeptrain.program import Boundary, Layers, Pass, Program
from sleeptrain.schedule.schedule import Producer, StageBlocks, StageOp

OpStage = tuple[int, int]
"""Op index and stage index of a stage op; op -1 is the initial state of the step."""
GradEdge = tuple[str, OpStage, OpStage]
"""Kind of value, producer and consumer, where the consumer's backward adds to the gradient of the value."""
Consumers = Mapping[tuple[str, OpStage], Sequence[OpStage]]
"""Stage ops that read a value, by its kind and producer, in program order."""


@dataclass(frozen=True)
class _Inputs:
    """Producers of a stage op's inputs."""

    h: OpStage | None
    S: OpStage
    kv: OpStage | None

    def by_kind(self) -> Iterable[tuple[str, OpStage]]:
        """Kind and producer of every input that exists."""
        kinds = (("h", self.h), ("S", self.S), ("kv", self.kv))
        return [(kind, producer) for kind, producer in kinds if producer is not None]


@dataclass(frozen=True)
class _Dataflow:
    """Everything that the stage ops of a program are derived from."""

    stages: Sequence[StageBlocks]
    passes: Mapping[int, Pass]
    """Passes of the program by op index."""
    paths: Mapping[Layers, Sequence[int]]
    """Stages that a pass over each range of blocks runs through."""
    inputs: Mapping[OpStage, _Inputs]
    """Inputs of every stage op, in program order and along the stages."""
    consumers: Consumers
    backward: Mapping[OpStage, bool]
    """Whether a stage op has a backward."""
    grad_edges: Set[GradEdge]
    boundaries: Mapping[int, Boundary]
    """The boundary after a window, by the last op of that window over each range of blocks."""


def stage_ops(program: Program, stages: Sequence[StageBlocks]) -> tuple[dict[int, StageOp], ...]:
    """The stage ops of every stage by op index, in program order."""
    flow = _dataflow(program, stages)
    ops: tuple[dict[int, StageOp], ...] = tuple({} for _ in stages)
    for op, stage in flow.inputs:
        ops[stage][op] = _stage_op(flow, op, stage)
    return ops


def _dataflow(program: Program, stages: Sequence[StageBlocks]) -> _Dataflow:
    passes = {i: op for i, op in enumerate(program.ops) if isinstance(op, Pass)}
    ranges: tuple[Layers, ...] = ("prelude", "loop", "coda")
    paths = {layers: _path(layers, stages) for layers in ranges}
    inputs = _inputs(passes, paths)
    consumers: dict[tuple[str, OpStage], list[OpStage]] = defaultdict(list)
    for key, reads in inputs.items():
        for kind, producer in reads.by_kind():
            if producer[0] >= 0:
                consumers[kind, producer].append(key)
    detaches = _detaches(program)
    backward: dict[OpStage, bool] = {}
    for op, stage in reversed(inputs):
        loss = _has_loss(passes[op], stage, paths)
        readers = (reader for kind in ("h", "S", "kv") for reader in consumers.get((kind, (op, stage)), ()))
        reached = any(detaches[op] == detaches[reader[0]] and backward[reader] for reader in readers)
        backward[op, stage] = passes[op].grad and (loss or reached)
    grad_edges = {
        (kind, producer, reader)
        for (kind, producer), readers in consumers.items()
        for reader in readers
        if backward[producer] and backward[reader] and detaches[producer[0]] == detaches[reader[0]]
    }
    return _Dataflow(stages, passes, paths, inputs, consumers, backward, grad_edges, _boundaries(program))


def _path(layers: Layers, stages: Sequence[StageBlocks]) -> list[int]:
    """Stages that own blocks of the range `layers`."""
    spans = (stage.part(layers) for stage in stages)
    return [s for s, (first, stop) in enumerate(spans) if first < stop]


def _has_loss(op: Pass, stage: int, paths: Mapping[Layers, Sequence[int]]) -> bool:
    """Whether the head scores the features leaving `op` on `stage`: on the last stage of the op's path."""
    return op.loss and stage == paths[op.layers][-1]


def _inputs(passes: Mapping[int, Pass], paths: Mapping[Layers, Sequence[int]]) -> dict[OpStage, _Inputs]:
    """Producers of every stage op's inputs, in program order and along the stages."""
    inputs: dict[OpStage, _Inputs] = {}
    newest_state: dict[Layers, int] = {}
    newest_cache: dict[Layers, int] = {}
    newest_prelude = newest_loop = -1
    for i, op in passes.items():
        h: OpStage | None
        if op.reads == "tokens":
            h = None
        elif op.reads == "above":
            h = (newest_prelude, paths["prelude"][-1])
        else:
            h = (newest_loop, paths["loop"][-1])
        for s in paths[op.layers]:
            kv = (newest_cache.get(op.layers, -1), s) if op.kv_read else None
            inputs[i, s] = _Inputs(h, (newest_state.get(op.layers, -1), s), kv)
            h = (i, s)
        newest_state[op.layers] = i
        if op.kv_write:
            newest_cache[op.layers] = i
        if op.layers == "prelude":
            newest_prelude = i
        elif op.layers == "loop":
            newest_loop = i
    return inputs


def _detaches(program: Program) -> dict[int, int]:
    """Number of detaches up to and including each op; gradient flows only between ops with equal numbers."""
    count, detaches = 0, {}
    for i, op in enumerate(program.ops):
        count += op.detach
        detaches[i] = count
    return detaches


def _boundaries(program: Program) -> dict[int, Boundary]:
    """For the last op over each range of blocks in a window, the boundary after that window."""
    boundaries: dict[int, Boundary] = {}
    newest: dict[Layers, int] = {}
    for i, op in enumerate(program.ops):
        if isinstance(op, Pass):
            newest[op.layers] = i
        else:
            boundaries |= dict.fromkeys(newest.values(), op)
            newest = {}
    return boundaries


def _stage_op(flow: _Dataflow, i: int, stage: int) -> StageOp:
    op, key, inputs = flow.passes[i], (i, stage), flow.inputs[i, stage]

    def producer(kind: str, source: OpStage) -> Producer:
        return Producer(*source, grad=(kind, source, key) in flow.grad_edges)

    def readers(kind: str) -> Sequence[OpStage]:
        return flow.consumers.get((kind, key), ())

    def grad_readers(kind: str) -> list[OpStage]:
        return [reader for reader in readers(kind) if (kind, key, reader) in flow.grad_edges]

    remote = [reader for reader in readers("h") if reader[1] != stage]
    # A send that continues the loop is on the critical path, so it goes before a send that only the coda reads.
    remote.sort(key=lambda reader: flow.passes[reader[0]].layers == "coda" and op.layers == "loop")
    receives, sends_grad = _received_features(flow, key)
    loss = _has_loss(op, stage, flow.paths)
    return StageOp(
        op=i,
        blocks=flow.stages[stage].part(op.layers),
        h=None if inputs.h is None else producer("h", inputs.h),
        S=producer("S", inputs.S),
        kv=None if inputs.kv is None else producer("kv", inputs.kv),
        receives=receives,
        sends_grad=sends_grad,
        makes_h=bool(readers("h")) or loss,
        makes_kv=op.kv_write,
        sends=tuple(dict.fromkeys(reader[1] for reader in remote)),
        normed=any(reader[0] != i and flow.passes[reader[0]].reads == "normed" for reader in remote),
        loss=loss,
        boundary=flow.boundaries.get(i),
        backward=flow.backward[key],
        dh=(loss and op.grad) or any(reader[1] == stage for reader in grad_readers("h")),
        receives_grad=tuple(dict.fromkeys(reader[1] for reader in grad_readers("h") if reader[1] != stage)),
        dS=bool(grad_readers("S")),
        dkv=bool(grad_readers("kv")),
    )


def _received_features(flow: _Dataflow, key: OpStage) -> tuple[bool, bool]:
    """Whether a stage op is the first of its stage to read features of another stage, and the last in backward.

    Several ops of a stage may read the same received features. They are received before the first of these ops, and
    their gradient is complete after the backward of the first one that has a gradient edge to them.
    """
    h, stage = flow.inputs[key].h, key[1]
    if h is None or h[1] == stage:
        return False, False
    readers = [reader for reader in flow.consumers.get(("h", h), ()) if reader[1] == stage]
    grad_readers = [reader for reader in readers if ("h", h, reader) in flow.grad_edges]
    return readers[:1] == [key], grad_readers[:1] == [key]
