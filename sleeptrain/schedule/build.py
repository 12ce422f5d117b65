"""Builds the schedule of the circular pipeline: every stage's actions over one group of micro-batches.

Forward order: for window, for pass, for micro-batch. A pass that leaves the last looped stage continues on the first
one. Only features are sent between stages; the state stays with its blocks. Backward is the exact reverse, with edges
reversed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sleeptrain.program import Pass, Program
from sleeptrain.schedule.dataflow import stage_ops
from sleeptrain.schedule.reads_writes import inputs, outputs, reads_writes
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
"""The stage ops that one stage runs in one pass over one window: those of its prelude, looped and coda blocks."""


@dataclass(frozen=True)
class _PassActions:
    """The actions of one stage pass for one micro-batch; its receives are posted one stage pass earlier."""

    receives: tuple[ScheduleAction, ...]
    work: tuple[ScheduleAction, ...]


@dataclass(frozen=True)
class _StageContext:
    """One stage of the schedule under construction."""

    program: Program
    index: int
    ops: Mapping[int, StageOp]
    group: int
    recompute: RecomputePolicy

    def window(self, stage_op: StageOp) -> int:
        """Index of the window of a stage op."""
        return self.program.ops[stage_op.op].window


def build_schedule(
    program: Program, stages: Sequence[StageBlocks], group: int, recompute: RecomputePolicy, tied: bool = False
) -> Schedule:
    """Schedule of one group of `group` micro-batches on `stages`; a single stage is ordinary training.

    `tied`: embedding and head share one matrix, whose gradient the first and the last stage reduce at the end.
    Raises ValueError if the group has fewer micro-batches than there are stages: every pass would have a bubble.
    """
    if group < max(1, len(stages)):
        raise ValueError(
            f"a group of {group} micro-batches cannot keep {len(stages)} stages busy: "
            f"a pass needs at least as many micro-batches as stages, so use a group of {max(1, len(stages))} or more"
        )
    return _schedule(program, stages, group, recompute, tied, range(len(stages)))


def sample_schedule(
    program: Program, stages: Sequence[StageBlocks], group: int, recompute: RecomputePolicy, only: Collection[int]
) -> Schedule:
    """The actions of the stages `only` as in `build_schedule`, for any number of micro-batches; the others have none.

    For estimates: FLOPs, messages and memory of a stage grow by equal amounts with every micro-batch beyond the first.
    """
    return _schedule(program, stages, group, recompute, False, only)


def _schedule(
    program: Program,
    stages: Sequence[StageBlocks],
    group: int,
    recompute: RecomputePolicy,
    tied: bool,
    only: Collection[int],
) -> Schedule:
    schedules = []
    for s, ops in enumerate(stage_ops(program, stages)):
        if s not in only:
            schedules.append(StageSchedule(stages[s], ops, (), ()))
            continue
        stage = _StageContext(program, s, ops, group, recompute)
        stage_passes = _stage_passes(stage)
        forward = _post_receives_early([_forward(s, each, m) for each in stage_passes for m in range(group)])
        backward = _post_receives_early(list(_backward_passes(stage, stage_passes)))
        if tied and len(stages) > 1 and s in (0, len(stages) - 1):
            backward.append(ScheduleAction("REDUCE", -1, -1, Edge(0, len(stages) - 1, "reduce")))
        schedules.append(_with_frees(stage, StageSchedule(stages[s], ops, tuple(forward), tuple(backward))))
    return Schedule(program, tuple(schedules), group, recompute, channel_per_edge(schedules))


def channel_per_edge(stages: Sequence[StageSchedule]) -> dict[Edge, str]:
    """One communicator for every directed edge that the stages use."""
    edges = {a.edge for stage in stages for a in (*stage.forward, *stage.backward) if a.edge is not None}
    return {edge: f"{edge.direction} {edge.src}-{edge.dst}" for edge in sorted(edges)}


def _stage_passes(stage: _StageContext) -> list[StagePass]:
    """A stage's ops grouped by window and pass, in program order."""
    grouped: dict[tuple[int, int], list[StageOp]] = {}
    for i, stage_op in stage.ops.items():
        op = stage.program.ops[i]
        assert isinstance(op, Pass)
        grouped.setdefault((op.window, op.index), []).append(stage_op)
    return [tuple(ops) for ops in grouped.values()]


def _post_receives_early(passes: Sequence[_PassActions]) -> list[ScheduleAction]:
    """All actions in order, with the receives of each pass before the work of the previous one to overlap transfers."""
    actions = list(passes[0].receives) if passes else []
    for k, each in enumerate(passes):
        if k + 1 < len(passes):
            actions += passes[k + 1].receives
        actions += each.work
    return actions


def _forward(s: int, stage_pass: StagePass, micro: int) -> _PassActions:
    receives, work, losses = [], [], []
    for stage_op in stage_pass:
        if stage_op.receives and stage_op.h is not None:
            receives.append(ScheduleAction("RECV", stage_op.h.op, micro, Edge(stage_op.h.stage, s, "forward")))
        work.append(ScheduleAction("FWD", stage_op.op, micro))
        work += [ScheduleAction("SEND", stage_op.op, micro, Edge(s, to, "forward")) for to in stage_op.sends]
        losses += [ScheduleAction("LOSS", stage_op.op, micro)] if stage_op.loss else []
    return _PassActions(tuple(receives), (*work, *losses))


def _backward_passes(stage: _StageContext, stage_passes: Sequence[StagePass]) -> Iterator[_PassActions]:
    """Backward of all stage passes in reverse.

    The first one of a window and micro-batch begins with the forward of those ops of the window whose outputs the
    window's backward reads and the policy did not save.
    """
    restored: set[tuple[int, int]] = set()
    for stage_pass in reversed(stage_passes):
        if not any(stage_op.backward for stage_op in stage_pass):
            continue
        window = stage.window(stage_pass[0])
        rerun = _ops_to_rerun(stage, window)
        for m in reversed(range(stage.group)):
            actions = _backward(stage, stage_pass, m)
            if (window, m) not in restored:
                restored.add((window, m))
                actions = replace(actions, work=(*(ScheduleAction("FWD", i, m) for i in rerun), *actions.work))
            yield actions


def _backward(stage: _StageContext, stage_pass: StagePass, micro: int) -> _PassActions:
    receives, work, s = [], [], stage.index
    for stage_op in reversed(stage_pass):
        if not stage_op.backward:
            continue
        receives += [
            ScheduleAction("RECV", stage_op.op, micro, Edge(source, s, "backward")) for source in stage_op.receives_grad
        ]
        if stage.recompute.body != "all":
            work.append(ScheduleAction("RECOMPUTE", stage_op.op, micro))
        if stage_op.loss:
            work.append(ScheduleAction("LOSS", stage_op.op, micro))
        work.append(ScheduleAction("BWD", stage_op.op, micro))
        if stage_op.sends_grad and stage_op.h is not None:
            work.append(ScheduleAction("SEND", stage_op.h.op, micro, Edge(s, stage_op.h.stage, "backward")))
    return _PassActions(tuple(receives), tuple(work))


def _ops_to_rerun(stage: _StageContext, window: int) -> list[int]:
    """Ops of a window that run forward again before its backward, to restore inputs that the policy did not save.

    Inputs that were received, and inputs produced by ops without a backward, are always saved.
    """
    ops, recompute = stage.ops, stage.recompute
    rerun: set[int] = set()
    pending = [stage_op for stage_op in ops.values() if stage_op.backward and stage.window(stage_op) == window]
    while pending:
        stage_op = pending.pop()
        for source, saved in ((stage_op.h, recompute.h), (stage_op.S, recompute.S), (stage_op.kv, recompute.S)):
            if source is None or saved == "pass" or source.stage != stage.index or source.op < 0 or source.op in rerun:
                continue
            producer = ops[source.op]
            if producer.backward and stage.window(producer) == window:
                rerun.add(source.op)
                pending.append(producer)
    return sorted(rerun)


def _with_frees(stage: _StageContext, schedule: StageSchedule) -> StageSchedule:
    """Adds to every action the values it frees: those it uses last before they are written again, or at all.

    Outputs of the schedule are never freed. Gradients are accumulated, so writing one again does not free it.
    """
    last_use: dict[Value, int] = dict.fromkeys(inputs(stage.index, stage.ops, stage.group), 0)
    frees: dict[int, list[Value]] = {}
    accumulated, final = ("dh", "dS", "dkv"), outputs(stage.index, schedule, stage.group)
    actions, backward_start = (*schedule.forward, *schedule.backward), len(schedule.forward)
    for n, action in enumerate(actions):
        stage_op = stage.ops.get(action.op)
        reads, writes = reads_writes(stage.index, stage_op, action, n >= backward_start, stage.recompute)
        for value in writes:
            if value in last_use and value.kind not in accumulated and value not in final:
                frees.setdefault(last_use[value], []).append(value)
            last_use[value] = n
        for value in reads:
            last_use[value] = n
    for value, n in last_use.items():
        if value not in final:
            frees.setdefault(n, []).append(value)
    freeing = [replace(a, frees=tuple(frees[n])) if n in frees else a for n, a in enumerate(actions)]
    return replace(schedule, forward=tuple(freeing[:backward_start]), backward=tuple(freeing[backward_start:]))
