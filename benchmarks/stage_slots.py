"""Idle slots of a pipeline: of what its stages did, and of what was planned, where every item counts alike."""

from __future__ import annotations

from collections.abc import Sequence

from sleeptrain.program import Pass
from sleeptrain.schedule import Costs, Schedule, ValueSizes, estimate

ITEMS = {"FWD": 1.0, "RECOMPUTE": 1.0, "BWD": 2.0}
"""Slots of an item."""
Event = tuple[str, str, int, int, tuple[int, int, str] | None]
"""begin, end or arrived; kind; op; micro-batch; edge."""


def idle_slots(traces: Sequence[Sequence[Event]]) -> list[float]:
    """Idle slots of every stage, from what each did, in its order. A stage that waited for a message cannot have gone on
    before that was sent. RuntimeError where stages waited for messages that nobody had sent."""
    sent: dict[tuple[str, int, int, int, int], float] = {}
    clocks, busy, at = [0.0] * len(traces), [0.0] * len(traces), [0] * len(traces)
    while any(k < len(trace) for k, trace in zip(at, traces, strict=True)):
        before = list(at)
        for s, trace in enumerate(traces):
            while at[s] < len(trace):
                what, kind, op, micro, edge = trace[at[s]]
                if what == "begin" and kind == "SEND" and edge:
                    sent["h" if edge[2] == "forward" else "rdh", op, micro, s, edge[1]] = clocks[s]
                elif what == "arrived" and edge:
                    message = (kind, op, micro, edge[0], s)
                    if message not in sent:
                        break
                    clocks[s] = max(clocks[s], sent[message])
                elif what == "end" and kind in ITEMS:
                    clocks[s] += ITEMS[kind]
                    busy[s] += ITEMS[kind]
                at[s] += 1
        if at == before:
            raise RuntimeError("stages waited for messages that nobody had sent")
    return [max(clocks) - b for b in busy]


def planned_slots(schedule: Schedule) -> list[float]:
    """Idle slots of every stage of a plan. All windows must be of one length."""
    (tokens,) = {op.stop - op.start for op in schedule.program.ops if isinstance(op, Pass)}
    depth = schedule.stages[-1].blocks.stop
    nothing, share = (0.0,) * depth, [0.0] * depth
    for stage in schedule.stages:
        blocks = range(stage.blocks.start, stage.blocks.stop)
        for b in blocks:
            share[b] = 1 / len(blocks)
    costs = Costs(ValueSizes(1.0, nothing, nothing, nothing, nothing), tuple(share), nothing, speed=tokens)
    return [stage.idle for stage in estimate(schedule, costs).stages]
