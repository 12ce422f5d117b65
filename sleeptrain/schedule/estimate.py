"""Prices a schedule: FLOPs, seconds, idle time, bytes kept, traffic. Costs go in as numbers; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sleeptrain.program.program import Pass, Program, pairs_seen
from sleeptrain.schedule.memory import BytesByComponent, ValueSizes, memory_profile
from sleeptrain.schedule.schedule import Edge, Schedule, ScheduleAction, StageSchedule
from sleeptrain.schedule.simulate import Seconds, Simulation, simulate

FlopsByKind = dict[str, float]
"""FLOPs by kind: forward, again, backward."""


@dataclass(frozen=True)
class Costs:
    """What work and messages cost; FLOPs per row of a micro-batch."""

    sizes: ValueSizes
    flops: tuple[float, ...]
    """Forward FLOPs of every block per token."""
    pairs: tuple[float, ...]
    """Forward FLOPs of every block per pair of a token and a key that it sees; 0 where it does not attend."""
    reach: int | None = None
    """How many keys a token sees at most, where that is less than the program's span."""
    head: float = 0.0
    """Forward FLOPs of the head per token."""
    shared: float = 0.0
    """Bytes of the matrix that embedding and head share."""
    speed: float = 1.0
    """FLOPs per second and stage."""
    bandwidth: float = float("inf")
    """Bytes per second and edge."""
    latency: float = 0.0
    """Seconds per message."""
    backward: float = 2.0
    """FLOPs of a backward in units of its forward."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage over one group: FLOPs by kind of work, seconds, bytes."""

    forward: float
    again: float
    """FLOPs of work that is done anew because its result was not kept."""
    backward: float
    busy: float
    idle: float
    """Seconds without work until the slowest stage is done."""
    bubble: float
    """Idle seconds as a fraction of all."""
    kept: BytesByComponent
    """By component at the turn from forward to backward."""
    peak: BytesByComponent
    """By component when their sum is largest."""
    host: float
    """Bytes in the host's memory at the turn, where the policy offloads."""


@dataclass(frozen=True)
class Estimate:
    """A group of micro-batches, forward and backward, on all stages."""

    stages: tuple[StageEstimate, ...]
    seconds: float
    traffic: Mapping[Edge, float]
    """Bytes by directed edge."""
    axes: Mapping[str, float]
    """Bytes by axis: `pipe` between stages, `host` to the host's memory and back; all stages together."""

    @property
    def bubble(self) -> float:
        """Idle seconds of all stages as a fraction of all."""
        return sum(s.idle for s in self.stages) / (self.seconds * len(self.stages)) if self.seconds else 0.0


def estimate(schedule: Schedule, costs: Costs) -> Estimate:
    """What a schedule costs. Raises ValueError for one that gets stuck."""
    run = simulate_costs(schedule, costs)
    if run.problems:
        raise ValueError(f"a schedule that cannot run has no price: {run.problems[0]}")
    stages, traffic, host = [], dict.fromkeys(schedule.channels, 0.0), 0.0
    for s, stage in enumerate(schedule.stages):
        for action in (*stage.forward, *stage.backward):
            if action.kind in ("SEND", "REDUCE") and action.edge is not None:
                traffic[action.edge] += _message(schedule.program, costs, action)
        work = _stage_work(schedule, costs, stage)
        memory = memory_profile(schedule, s, costs.sizes)
        host += memory.moved
        busy = sum(end - begin for begin, end in run.spans[s])
        idle = run.seconds - busy
        bubble = idle / run.seconds if run.seconds else 0.0
        stages.append(StageEstimate(**work, busy=busy, idle=idle, bubble=bubble, kept=memory.kept, peak=memory.peak,
                                 host=memory.host))  # fmt: skip
    return Estimate(tuple(stages), run.seconds, traffic, {"pipe": sum(traffic.values()), "host": host})


def simulate_costs(schedule: Schedule, costs: Costs) -> Simulation:
    """The schedule on a clock: how long its actions and messages take follows from `costs`."""

    def transit(action: ScheduleAction) -> float:
        return costs.latency + _message(schedule.program, costs, action) / costs.bandwidth

    return simulate(schedule, seconds_of(schedule, costs), transit)


def seconds_of(schedule: Schedule, costs: Costs) -> Seconds:
    """How long a stage needs for an action; worked out once for every op and kind."""
    known: dict[tuple[int, str, int, bool], float] = {}

    def seconds(stage: int, action: ScheduleAction, backward: bool) -> float:
        key = (stage, action.kind, action.op, backward)
        if key not in known:
            work = _work(schedule, costs, schedule.stages[stage], action, backward)
            known[key] = sum(work.values()) / costs.speed
        return known[key]

    return seconds


def item_flops(program: Program, costs: Costs, op: int, blocks: tuple[int, int]) -> float:
    """Forward FLOPs of some blocks in one op, for all rows of a micro-batch."""
    found = program.ops[op]
    assert isinstance(found, Pass)
    tokens, pairs = found.stop - found.start, pairs_seen(program, found, costs.reach)
    per = sum(costs.flops[b] * tokens + costs.pairs[b] * pairs for b in range(*blocks))
    return per * costs.sizes.rows


def _stage_work(schedule: Schedule, costs: Costs, stage: StageSchedule) -> FlopsByKind:
    total = {"forward": 0.0, "again": 0.0, "backward": 0.0}
    known: dict[tuple[str, int, bool], FlopsByKind] = {}
    for backward, actions in ((False, stage.forward), (True, stage.backward)):
        for action in actions:
            if action.edge is not None:
                continue
            key = (action.kind, action.op, backward)
            if key not in known:
                known[key] = _work(schedule, costs, stage, action, backward)
            for kind, flops in known[key].items():
                total[kind] += flops
    return total


def _work(
    schedule: Schedule, costs: Costs, stage: StageSchedule, action: ScheduleAction, backward: bool
) -> FlopsByKind:
    """FLOPs of one action by kind of work."""
    program = schedule.program
    if action.kind == "LOSS":
        op = program.ops[action.op]
        assert isinstance(op, Pass)
        head = costs.head * (op.stop - op.start) * costs.sizes.rows
        if not backward:
            return {"forward": head}
        return {"again": 0.0 if schedule.recompute.body == "all" else head, "backward": costs.backward * head}
    flops = item_flops(program, costs, action.op, stage.ops[action.op].blocks)
    match action.kind:
        case "BWD":
            return {"backward": costs.backward * flops}
        case "RECOMPUTE":
            return {"again": flops}
        case _:
            return {"again" if backward else "forward": flops}


def _message(program: Program, costs: Costs, action: ScheduleAction) -> float:
    """Bytes of one message."""
    if action.op < 0:
        return costs.shared
    op = program.ops[action.op]
    assert isinstance(op, Pass)
    return costs.sizes.h * (op.stop - op.start) * costs.sizes.rows
