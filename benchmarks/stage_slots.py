"""Idle slots of a pipeline, as executed and as planned; a forward takes one slot and a backward two."""

from __future__ import annotations

from collections.abc import Sequence

from sleeptrain.program import Pass
from sleeptrain.schedule import BlockFlops, Costs, Schedule, ValueSizes, estimate

SLOTS = {"FWD": 1.0, "RECOMPUTE": 1.0, "BWD": 2.0}
"""Slots of an action by kind."""
Event = tuple[str, str, int, int, tuple[int, int, str] | None]
"""begin, end or arrived; kind of the action or value; op; micro-batch; edge."""


def idle_slots(traces: Sequence[Sequence[Event]]) -> list[float]:
    """Idle slots of every stage, from the events of each stage in order.

    A stage that waited for a message continues once the message was sent. Raises RuntimeError if stages waited for
    messages that were never sent.
    """
    sent: dict[tuple[str, int, int, int, int], float] = {}
    clocks, busy, position = [0.0] * len(traces), [0.0] * len(traces), [0] * len(traces)
    while any(k < len(trace) for k, trace in zip(position, traces, strict=True)):
        before = list(position)
        for s, trace in enumerate(traces):
            while position[s] < len(trace):
                event, kind, op, micro, edge = trace[position[s]]
                if event == "begin" and kind == "SEND" and edge:
                    sent["h" if edge[2] == "forward" else "rdh", op, micro, s, edge[1]] = clocks[s]
                elif event == "arrived" and edge:
                    message = (kind, op, micro, edge[0], s)
                    if message not in sent:
                        break
                    clocks[s] = max(clocks[s], sent[message])
                elif event == "end" and kind in SLOTS:
                    clocks[s] += SLOTS[kind]
                    busy[s] += SLOTS[kind]
                position[s] += 1
        if position == before:
            raise RuntimeError("stages waited for messages that were never sent")
    return [max(clocks) - b for b in busy]


def planned_slots(schedule: Schedule) -> list[float]:
    """Idle slots of every stage of a schedule. All windows must have the same length."""
    (tokens,) = {op.stop - op.start for op in schedule.program.ops if isinstance(op, Pass)}
    depth = schedule.stages[-1].blocks.stop
    zeros, block_slots = (0.0,) * depth, [0.0] * depth
    for stage in schedule.stages:
        blocks = range(stage.blocks.start, stage.blocks.stop)
        for b in blocks:
            block_slots[b] = 1 / len(blocks)
    costs = Costs(ValueSizes(1.0, zeros, zeros, zeros, zeros), tuple(map(BlockFlops, block_slots)), speed=tokens)
    return [stage.idle for stage in estimate(schedule, costs).stages]
