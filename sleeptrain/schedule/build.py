"""Places a program on stages: every stage's actions over one group of micro-batches, in order.

The circular order: for window, for pass, for micro-batch. A pass that leaves the last looped stage goes back to the
first; only features cross stages, the state stays with its blocks. Backward is the exact reverse, with edges reversed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sleeptrain.program.program import Pass, Program
from sleeptrain.schedule.dataflow import stage_ops
from sleeptrain.schedule.reads_writes import outputs, reads_writes
from sleeptrain.schedule.schedule import (
    Edge,
    RecomputePolicy,
    Schedule,
    ScheduleAction,
    StageBlocks,
    StageOp,
    StageSchedule,
    Value,
)

StagePass = tuple[StageOp, ...]
"""What a stage runs for one micro-batch in one pass over one window: prelude, looped and coda blocks it owns."""


@dataclass(frozen=True)
class _PassActions:
    """A turn of one micro-batch: receives to post one turn ahead, and the work itself."""

    receives: tuple[ScheduleAction, ...]
    work: tuple[ScheduleAction, ...]


def build_schedule(
    program: Program, stages: Sequence[StageBlocks], group: int, recompute: RecomputePolicy, tied: bool = False
) -> Schedule:
    """The schedule of one group of `group` micro-batches on `stages`; one stage is the ordinary trainer.

    `tied`: embedding and head are one matrix, whose gradient the first and the last stage sum at the end.
    Raises ValueError for groups smaller than the number of stages: stages would wait for one another in every pass.
    """
    if group < max(1, len(stages)):
        raise ValueError(
            f"a group of {group} micro-batches cannot keep {len(stages)} stages busy: "
            f"a pass needs at least as many micro-batches as stages, so use a group of {max(1, len(stages))} or more"
        )
    placed = []
    for s, items in enumerate(stage_ops(program, stages)):
        turns = _stage_passes(program, items)
        forward = _one_ahead([_forward(s, turn, m) for turn in turns for m in range(group)])
        steps = list(_backward_steps(program, s, items, turns, group, recompute))
        backward = _one_ahead(steps)
        if tied and len(stages) > 1 and s in (0, len(stages) - 1):
            backward.append(ScheduleAction("REDUCE", -1, -1, Edge(0, len(stages) - 1, "reduce")))
        stage = StageSchedule(stages[s], items, tuple(forward), tuple(backward))
        placed.append(_with_frees(s, stage, group, recompute))
    return Schedule(program, tuple(placed), group, recompute, channel_per_edge(placed))


def channel_per_edge(stages: Sequence[StageSchedule]) -> dict[Edge, str]:
    """A communicator for every directed edge in use."""
    edges = {a.edge for stage in stages for a in (*stage.forward, *stage.backward) if a.edge is not None}
    return {edge: f"{edge.direction} {edge.src}-{edge.dst}" for edge in sorted(edges)}


def _stage_passes(program: Program, items: Mapping[int, StageOp]) -> list[StagePass]:
    """A stage's items by window and pass."""
    turns: dict[tuple[int, int], list[StageOp]] = {}
    for i, item in items.items():
        op = program.ops[i]
        assert isinstance(op, Pass)
        turns.setdefault((op.window, op.index), []).append(item)
    return [tuple(turn) for turn in turns.values()]


def _one_ahead(steps: Sequence[_PassActions]) -> list[ScheduleAction]:
    """All steps in order, each preceded by the receives of the one after it, so that transfers hide behind work."""
    actions = list(steps[0].receives) if steps else []
    for k, step in enumerate(steps):
        if k + 1 < len(steps):
            actions += steps[k + 1].receives
        actions += step.work
    return actions


def _forward(s: int, turn: StagePass, micro: int) -> _PassActions:
    receives, work, losses = [], [], []
    for item in turn:
        if item.receives and item.h is not None:
            receives.append(ScheduleAction("RECV", item.h.op, micro, Edge(item.h.stage, s, "forward")))
        work.append(ScheduleAction("FWD", item.op, micro))
        work += [ScheduleAction("SEND", item.op, micro, Edge(s, to, "forward")) for to in item.sends]
        losses += [ScheduleAction("LOSS", item.op, micro)] if item.loss else []
    return _PassActions(tuple(receives), (*work, *losses))


def _backward_steps(
    program: Program,
    s: int,
    ops: Mapping[int, StageOp],
    turns: Sequence[StagePass],
    group: int,
    recompute: RecomputePolicy,
) -> Iterator[_PassActions]:
    """Turns in reverse. The first one of a window restores what the window's passes read, where that was not kept."""
    restored: set[tuple[int, int]] = set()
    for turn in reversed(turns):
        if not any(item.backward for item in turn):
            continue
        window = _window(program, turn[0])
        again = _ops_to_rerun(program, s, ops, window, recompute)
        for m in reversed(range(group)):
            step = _backward(s, turn, m, recompute)
            if (window, m) not in restored:
                restored.add((window, m))
                step = replace(step, work=(*(ScheduleAction("FWD", i, m) for i in again), *step.work))
            yield step


def _backward(s: int, turn: StagePass, micro: int, recompute: RecomputePolicy) -> _PassActions:
    receives, work = [], []
    for item in reversed(turn):
        if not item.backward:
            continue
        receives += [ScheduleAction("RECV", item.op, micro, Edge(back, s, "backward")) for back in item.returned]
        if recompute.body != "all":
            work.append(ScheduleAction("RECOMPUTE", item.op, micro))
        if item.loss:
            work.append(ScheduleAction("LOSS", item.op, micro))
        work.append(ScheduleAction("BWD", item.op, micro))
        if item.returns and item.h is not None:
            work.append(ScheduleAction("SEND", item.h.op, micro, Edge(s, item.h.stage, "backward")))
    return _PassActions(tuple(receives), tuple(work))


def _window(program: Program, item: StageOp) -> int:
    return program.ops[item.op].window


def _ops_to_rerun(
    program: Program, s: int, items: Mapping[int, StageOp], window: int, recompute: RecomputePolicy
) -> list[int]:
    """Ops of a window that run again, without graphs, before its backward: they make what its passes read.

    What came from another stage, or from work that has no backward, was kept.
    """
    found: set[int] = set()
    wanted = [item for i, item in items.items() if item.backward and _window(program, item) == window]
    while wanted:
        item = wanted.pop()
        for source, grain in ((item.h, recompute.h), (item.S, recompute.S), (item.kv, recompute.S)):
            if source is None or grain == "pass" or source.stage != s or source.op < 0 or source.op in found:
                continue
            maker = items[source.op]
            if maker.backward and _window(program, maker) == window:
                found.add(source.op)
                wanted.append(maker)
    return sorted(found)


def _with_frees(s: int, stage: StageSchedule, group: int, recompute: RecomputePolicy) -> StageSchedule:
    """Every value is freed by the last action that touches it before it is made anew, or at all; results never are."""
    last: dict[Value, int] = {Value("S", -1, m, s): 0 for m in range(group)}
    frees: dict[int, list[Value]] = {}
    summed, kept = ("dh", "dS", "dkv"), outputs(s, stage, group)
    n, actions = 0, (*stage.forward, *stage.backward)
    for n, action in enumerate(actions):
        read, made = reads_writes(s, stage.ops.get(action.op), action, n >= len(stage.forward), recompute)
        for value in made:
            if value in last and value.kind not in summed and value not in kept:
                frees.setdefault(last[value], []).append(value)
            last[value] = n
        for value in read:
            last[value] = n
    for value, n in last.items():
        if value not in kept:
            frees.setdefault(n, []).append(value)
    done = [replace(a, frees=tuple(frees[n])) if n in frees else a for n, a in enumerate(actions)]
    return replace(stage, forward=tuple(done[: len(stage.forward)]), backward=tuple(done[len(stage.forward) :]))
