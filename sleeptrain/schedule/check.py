"""Proves a schedule: everything runs once and in order, nothing is read that is not there, no message blocks another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sleeptrain.schedule.reads_writes import outputs, reads_writes
from sleeptrain.schedule.schedule import Schedule, ScheduleAction, StageSchedule, Value
from sleeptrain.schedule.simulate import describe, simulate


def check(schedule: Schedule) -> list[str]:
    """What is wrong with a schedule, in words; empty if nothing is.

    Deadlocks and messages out of order under NCCL's rules, values read before they are made or after they are freed,
    values never freed, items left out or run twice, and a backward that is not the reverse of the forward.
    """
    found: list[str] = []
    for s, stage in enumerate(schedule.stages):
        found += _order(schedule, s, stage)
        found += _values(schedule, s, stage)
    return found + list(simulate(schedule, _no_time, _at_once).problems)


def _no_time(stage: int, action: ScheduleAction, backward: bool) -> float:
    return 0.0


def _at_once(action: ScheduleAction) -> float:
    return 0.0


def _order(schedule: Schedule, s: int, stage: StageSchedule) -> Iterator[str]:
    """Every item once forward, and once backward in the opposite order where it has a backward."""
    wanted = {(item.op, m): item for item in stage.ops.values() for m in range(schedule.group)}
    halves = ((stage.forward, "FWD"), (stage.forward, "LOSS"), (stage.backward, "LOSS"), (stage.backward, "BWD"))
    done = [[(a.op, a.micro) for a in half if a.kind == kind] for half, kind in halves]
    due = [
        set(wanted),
        {key for key, item in wanted.items() if item.loss},
        {key for key, item in wanted.items() if item.loss and item.backward},
        {key for key, item in wanted.items() if item.backward},
    ]
    for (_, kind), keys, expected in zip(halves, done, due, strict=True):
        for (op, micro), n in (Counter(keys) - Counter(expected)).items():
            yield f"stage {s}: {describe(schedule.program, ScheduleAction(kind, op, micro))} is {n} times too often there"  # type: ignore[arg-type]
        for op, micro in expected.difference(keys):
            yield f"stage {s}: {describe(schedule.program, ScheduleAction(kind, op, micro))} is missing"  # type: ignore[arg-type]
    if done[3] != [key for key in reversed(done[0]) if key in due[3]]:
        yield f"stage {s}: backward is not the reverse of forward"


def _values(schedule: Schedule, s: int, stage: StageSchedule) -> Iterator[str]:
    """Walk a stage's actions with the set of values it holds."""
    held = {Value("S", -1, m, s) for m in range(schedule.group)}
    freed: dict[Value, ScheduleAction] = {}
    turn = len(stage.forward)
    for n, action in enumerate((*stage.forward, *stage.backward)):
        if action.edge is None and action.op not in stage.ops:
            yield f"stage {s} has no blocks for {describe(schedule.program, action)}"
            continue
        read, made = reads_writes(s, stage.ops.get(action.op), action, n >= turn, schedule.recompute)
        for value in read:
            if value not in held:
                why = (
                    f"after {describe(schedule.program, freed[value])} freed it"
                    if value in freed
                    else "before it is made"
                )
                yield f"stage {s}, {describe(schedule.program, action)}: reads {_called(value)} {why}"
        held.update(made)
        for value in action.frees:
            if value not in held:
                yield f"stage {s}, {describe(schedule.program, action)}: frees {_called(value)}, which it does not hold"
            held.discard(value)
            freed[value] = action
    kept = outputs(s, stage, schedule.group)
    yield from (f"stage {s} never frees {_called(value)}" for value in sorted(held - kept))
    yield from (f"stage {s} is left without {_called(value)}" for value in sorted(kept - held))


def _called(value: Value) -> str:
    return f"{value.kind} of op {value.op} micro {value.micro} from stage {value.stage}"
