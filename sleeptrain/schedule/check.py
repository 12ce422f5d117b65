"""Static verification of a schedule: every op runs once and in order, no use after free, no deadlock, no lost message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sleeptrain.schedule.reads_writes import inputs, outputs, reads_writes
from sleeptrain.schedule.schedule import ActionKind, Schedule, ScheduleAction, StageSchedule, Value
from sleeptrain.schedule.simulate import describe, simulate


def checked(schedule: Schedule) -> Schedule:
    """Returns the schedule if `check` finds no problem, and raises ValueError with the first problems otherwise."""
    if problems := check(schedule):
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"invalid schedule: {shown}")
    return schedule


def check(schedule: Schedule) -> list[str]:
    """The problems of a schedule, one message each; empty for a valid schedule.

    Found are deadlocks and mismatched messages under NCCL's rules, values read before they are written or after they
    are freed, values never freed, ops that are missing or run twice, and a backward that is not the reverse of forward.
    """
    problems: list[str] = []
    for s, stage in enumerate(schedule.stages):
        problems += _check_order(schedule, s, stage)
        problems += _check_values(schedule, s, stage)
    return problems + list(simulate(schedule, _no_compute_time, _no_message_time).problems)


def _no_compute_time(stage: int, action: ScheduleAction, backward: bool) -> float:
    return 0.0


def _no_message_time(action: ScheduleAction) -> float:
    return 0.0


def _check_order(schedule: Schedule, s: int, stage: StageSchedule) -> Iterator[str]:
    """Every op runs forward once, and ops with a backward run it once, in reverse order."""
    ops = {(stage_op.op, m): stage_op for stage_op in stage.ops.values() for m in range(schedule.group)}
    with_backward = {key for key, stage_op in ops.items() if stage_op.backward}
    with_loss = {key for key, stage_op in ops.items() if stage_op.loss}
    expectations: list[tuple[tuple[ScheduleAction, ...], ActionKind, set[tuple[int, int]]]] = [
        (stage.forward, "FWD", set(ops)),
        (stage.forward, "LOSS", with_loss),
        (stage.backward, "LOSS", with_loss & with_backward),
        (stage.backward, "BWD", with_backward),
    ]
    for actions, kind, expected in expectations:
        scheduled = _keys(actions, kind)
        for (op, micro), n in (Counter(scheduled) - Counter(expected)).items():
            action = describe(schedule.program, ScheduleAction(kind, op, micro))
            yield f"stage {s}: {n} unexpected or repeated {action}"
        for op, micro in expected.difference(scheduled):
            yield f"stage {s}: {describe(schedule.program, ScheduleAction(kind, op, micro))} is missing"
    forward_order = [key for key in _keys(stage.forward, "FWD") if key in with_backward]
    if _keys(stage.backward, "BWD") != forward_order[::-1]:
        yield f"stage {s}: backward is not the reverse of forward"


def _keys(actions: tuple[ScheduleAction, ...], kind: ActionKind) -> list[tuple[int, int]]:
    """Op and micro-batch of the actions of one kind, in order."""
    return [(action.op, action.micro) for action in actions if action.kind == kind]


def _check_values(schedule: Schedule, s: int, stage: StageSchedule) -> Iterator[str]:
    """Walks a stage's actions with the set of values that it holds."""
    held = inputs(s, stage.ops, schedule.group)
    freed_by: dict[Value, ScheduleAction] = {}
    for n, action in enumerate((*stage.forward, *stage.backward)):
        if action.edge is None and action.op not in stage.ops:
            yield f"stage {s} has no blocks for {describe(schedule.program, action)}"
            continue
        backward = n >= len(stage.forward)
        reads, writes = reads_writes(s, stage.ops.get(action.op), action, backward, schedule.recompute)
        for value in reads:
            if value not in held:
                freed = freed_by.get(value)
                why = f"after {describe(schedule.program, freed)} freed it" if freed else "before it is written"
                yield f"stage {s}, {describe(schedule.program, action)}: reads {_describe_value(value)} {why}"
        held.update(writes)
        for value in action.frees:
            if value not in held:
                yield f"stage {s}, {describe(schedule.program, action)}: frees {_describe_value(value)}, which the stage does not hold"
            held.discard(value)
            freed_by[value] = action
    final = outputs(s, stage, schedule.group)
    yield from (f"stage {s} never frees {_describe_value(value)}" for value in sorted(held - final))
    yield from (f"stage {s} does not hold its output {_describe_value(value)}" for value in sorted(final - held))


def _describe_value(value: Value) -> str:
    return f"{value.kind} of op {value.op} micro {value.micro} from stage {value.stage}"
