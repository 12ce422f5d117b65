"""The values that every action reads and writes: one table for building, checking and estimating schedules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from sleeptrain.schedule.schedule import RecomputePolicy, ScheduleAction, StageOp, StageSchedule, Value

ValueKeys = tuple[tuple[str, int, int], ...]
"""Values without their micro-batch: kind, op, stage."""
ReadsWrites = tuple[ValueKeys, ValueKeys]
"""Values read and values written."""


def reads_writes(
    stage: int, stage_op: StageOp | None, action: ScheduleAction, backward: bool, recompute: RecomputePolicy
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Values that an action reads, and values that it writes.

    `stage_op` is the stage op of the action (unused for messages); `backward` tells the half of the step.
    """
    if action.edge is not None:
        reads, writes = _message(stage, action, backward)
    else:
        assert stage_op is not None
        reads, writes = _compute(stage, stage_op, action.kind, backward, recompute)
    return _for_micro_batch(reads, action.micro), _for_micro_batch(writes, action.micro)


def _for_micro_batch(keys: ValueKeys, micro: int) -> tuple[Value, ...]:
    return tuple(Value(kind, op, micro, stage) for kind, op, stage in keys)


def _message(stage: int, action: ScheduleAction, backward: bool) -> ReadsWrites:
    edge, op = action.edge, action.op
    assert edge is not None
    if action.kind == "REDUCE":
        return (), ()
    if action.kind == "SEND":
        return ((("dh", op, edge.dst) if backward else ("h", op, stage)),), ()
    return (), ((("rdh" if backward else "h"), op, edge.src),)


@lru_cache(maxsize=4096)
def _compute(
    stage: int, stage_op: StageOp, action_kind: str, backward: bool, recompute: RecomputePolicy
) -> ReadsWrites:
    i, saves_graphs = stage_op.op, recompute.body == "all"
    producers = [("h", stage_op.h), ("S", stage_op.S), ("kv", stage_op.kv)]
    inputs = tuple((kind, p.op, p.stage) for kind, p in producers if p is not None)
    block_inputs = (("blocks", i, stage),) if recompute.body in ("block", "products") else ()
    h = ("h", i, stage)
    match action_kind:
        case "FWD":
            writes = [("S", i, stage)]
            writes += [h] if stage_op.makes_h else []
            writes += [("kv", i, stage)] if stage_op.makes_kv else []
            if stage_op.backward and not backward and recompute.body != "none":
                writes.append(("graph" if saves_graphs else "blocks", i, stage))
            return inputs, tuple(writes)
        case "RECOMPUTE":
            return inputs + block_inputs, (("graph", i, stage), *((h,) if stage_op.loss else ()))
        case "LOSS" if backward:
            return (("head", i, stage) if saves_graphs else h,), (("dh", i, stage),)
        case "LOSS":
            return (h,), ((("head", i, stage),) if saves_graphs and stage_op.backward else ())
        case _:
            received = tuple(("rdh", i, source) for source in stage_op.receives_grad)
            gradients = (("dh", stage_op.dh), ("dS", stage_op.dS), ("dkv", stage_op.dkv))
            local = tuple((kind, i, stage) for kind, exists in gradients if exists)
            writes = [(f"d{kind}", p.op, p.stage) for kind, p in producers if p is not None and p.grad]
            return (("graph", i, stage), *block_inputs, *inputs, *local, *received), tuple(writes)


def inputs(stage: int, ops: Mapping[int, StageOp], group: int) -> set[Value]:
    """Values that a stage holds before its first action: the state with which every micro-batch begins.

    The attention cache belongs to it where the first window reads what an earlier step left.
    """
    kinds = {"S"} | {"kv" for stage_op in ops.values() if stage_op.kv is not None and stage_op.kv.op < 0}
    return {Value(kind, -1, m, stage) for kind in kinds for m in range(group)}


def outputs(stage: int, stage_schedule: StageSchedule, group: int) -> set[Value]:
    """Values that a stage still holds after its last action: the final state of every micro-batch."""
    ops = stage_schedule.ops
    newest = {("S", ops[op].blocks): op for op in sorted(ops)}
    newest |= {("kv", ops[op].blocks): op for op in sorted(ops) if ops[op].makes_kv}
    return {Value(kind, op, m, stage) for (kind, _), op in newest.items() for m in range(group)}
