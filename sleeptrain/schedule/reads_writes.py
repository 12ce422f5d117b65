"""What every action reads and makes: the one table that placing, checking and pricing share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from sleeptrain.schedule.schedule import RecomputePolicy, ScheduleAction, StageOp, StageSchedule, Value

ValueKeys = tuple[tuple[str, int, int], ...]
"""Values without their micro-batch: kind, op, stage."""
ReadsWrites = tuple[ValueKeys, ValueKeys]
"""Read and made."""


def reads_writes(
    stage: int, item: StageOp | None, action: ScheduleAction, backward: bool, recompute: RecomputePolicy
) -> Iterator[tuple[Value, ...]]:
    """The values that an action reads, then those that it makes; `item` is the stage's item of the action's op."""
    if action.edge is not None:
        found = _message(stage, action, backward)
    else:
        assert item is not None
        found = _work(stage, item, action.kind, backward, recompute)
    for side in found:
        yield tuple(Value(kind, op, action.micro, at) for kind, op, at in side)


def _message(stage: int, action: ScheduleAction, backward: bool) -> ReadsWrites:
    edge, op = action.edge, action.op
    assert edge is not None
    if action.kind == "REDUCE":
        return (), ()
    if action.kind == "SEND":
        return ((("dh", op, edge.dst) if backward else ("h", op, stage)),), ()
    return (), ((("rdh" if backward else "h"), op, edge.src),)


@lru_cache(maxsize=4096)
def _work(stage: int, item: StageOp, kind: str, backward: bool, recompute: RecomputePolicy) -> ReadsWrites:
    i, graphs = item.op, recompute.body == "all"
    sources = [("h", item.h), ("S", item.S), ("kv", item.kv)]
    inputs = tuple((kind, s.op, s.stage) for kind, s in sources if s is not None)
    out = ("h", i, stage)
    match kind:
        case "FWD":
            made = [("S", i, stage)]
            made += [out] if item.makes_h else []
            made += [("kv", i, stage)] if item.makes_kv else []
            if item.backward and not backward and recompute.body != "none":
                made.append(("graph" if graphs else "blocks", i, stage))
            return inputs, tuple(made)
        case "RECOMPUTE":
            kept = (("blocks", i, stage),) if recompute.body == "block" else ()
            return inputs + kept, (("graph", i, stage), *((out,) if item.loss else ()))
        case "LOSS" if backward:
            return (("head", i, stage) if graphs else out,), (("dh", i, stage),)
        case "LOSS":
            return (out,), ((("head", i, stage),) if graphs and item.backward else ())
        case _:
            blocks = (("blocks", i, stage),) if recompute.body == "block" else ()
            arrived = tuple(("rdh", i, s) for s in item.returned)
            local = tuple((k, i, stage) for k, there in (("dh", item.dh), ("dS", item.dS), ("dkv", item.dkv)) if there)
            passed = tuple((f"d{k}", s.op, s.stage) for k, s in sources if s is not None and s.grad)
            return (("graph", i, stage), *blocks, *inputs, *local, *arrived), passed


def outputs(stage: int, at: StageSchedule, group: int) -> set[Value]:
    """What is left of a stage when all is done: the state of every micro-batch."""
    newest = {("S", at.ops[op].blocks): op for op in sorted(at.ops)}
    newest |= {("kv", at.ops[op].blocks): op for op in sorted(at.ops) if at.ops[op].makes_kv}
    return {Value(kind, op, m, stage) for (kind, _), op in newest.items() for m in range(group)}
