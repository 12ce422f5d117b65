"""Estimates a schedule: FLOPs, seconds, idle time, memory and traffic, from given unit costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sleeptrain.program import Pass, Program, pairs_seen
from sleeptrain.schedule.backward import BackwardBlocks, BlockFlops, backward_blocks, backward_flops
from sleeptrain.schedule.memory import memory_profile
from sleeptrain.schedule.peak import Moment, Temporaries
from sleeptrain.schedule.schedule import Edge, Schedule, ScheduleAction, StageSchedule
from sleeptrain.schedule.simulate import ActionSeconds, Simulation, simulate
from sleeptrain.schedule.value_bytes import BytesByComponent, ValueSizes

FlopsByKind = dict[str, float]
"""FLOPs by kind: forward, recompute, backward."""
Reached = Mapping[int, BackwardBlocks]
"""By op of a stage."""


@dataclass(frozen=True)
class Costs:
    """Unit costs of compute and messages; FLOPs per row of a micro-batch."""

    sizes: ValueSizes
    blocks: tuple[BlockFlops, ...]
    """Forward FLOPs of every block."""
    reaches: tuple[int | None, int | None] = (None, None)
    """`Model.reaches`: largest numbers of keys per query, where they are less than the program's span."""
    head: float = 0.0
    """Forward FLOPs of the head per token."""
    head_backward: float | None = None
    """FLOPs of its backward; None: twice as many."""
    lowest: int = 0
    """The first block that has a backward."""
    tied_bytes: float = 0.0
    """Bytes of the gradient of the matrix that embedding and head share."""
    temporaries: tuple[Temporaries, ...] = ()
    """Memory of every stage beside its values; empty: not counted."""
    autograd: bool = False
    """Autograd runs the passes, which keeps nothing that no gradient reaches, and releases block by block; not the executor."""
    speed: float = 1.0
    """FLOPs per second and stage."""
    bandwidth: float = float("inf")
    """Bytes per second and edge."""
    latency: float = 0.0
    """Seconds per message."""


@dataclass(frozen=True)
class StageEstimate:
    """FLOPs by kind, seconds and bytes of one stage over one group of micro-batches."""

    forward: float
    recompute: float
    """FLOPs of forward work that is repeated because its result was not saved."""
    backward: float
    busy: float
    idle: float
    """Seconds without work, until the last stage finishes."""
    bubble: float
    """Idle seconds as a fraction of the total."""
    kept: BytesByComponent
    """By component, between forward and backward."""
    peak: BytesByComponent
    """By component, when their sum with `moment` is largest."""
    moment: Moment
    """Gradients of weights and temporaries at that time; zero where `Costs.temporaries` are not given."""
    host: float
    """Bytes offloaded to host memory, between forward and backward."""


@dataclass(frozen=True)
class Estimate:
    """Forward and backward of one group of micro-batches on all stages."""

    stages: tuple[StageEstimate, ...]
    seconds: float
    traffic: Mapping[Edge, float]
    """Bytes by directed edge."""
    axes: Mapping[str, float]
    """Bytes by axis over all stages: `pipe` between stages, `host` to host memory and back."""

    @property
    def bubble(self) -> float:
        """Idle seconds of all stages as a fraction of the total."""
        return sum(s.idle for s in self.stages) / (self.seconds * len(self.stages)) if self.seconds else 0.0


def estimate(schedule: Schedule, costs: Costs) -> Estimate:
    """FLOPs, seconds, idle time, memory and traffic of a schedule. Raises ValueError for one that does not complete."""
    run = simulate_costs(schedule, costs)
    if run.problems:
        raise ValueError(f"cannot estimate an invalid schedule: {run.problems[0]}")
    stages, traffic = [], dict.fromkeys(schedule.channels, 0.0)
    for s in range(len(schedule.stages)):
        for edge, size in sent_by_stage(schedule, s, costs).items():
            traffic[edge] += size
        busy = sum(end - begin for begin, end in run.spans[s])
        stages.append(estimate_stage(schedule, s, costs, busy, run.seconds))
    host = sum(2 * stage.host for stage in stages)
    return Estimate(tuple(stages), run.seconds, traffic, {"pipe": sum(traffic.values()), "host": host})


def estimate_stage(schedule: Schedule, s: int, costs: Costs, busy: float = 0.0, seconds: float = 0.0) -> StageEstimate:
    """FLOPs and memory of one stage, which is `busy` for some of the `seconds` that all stages take. The others may have no actions."""
    temporaries, idle = costs.temporaries[s] if costs.temporaries else None, seconds - busy
    reached = backward_blocks(schedule.stages[s].ops, costs.blocks, costs.lowest)
    memory = memory_profile(schedule, s, costs.sizes, temporaries, reached if costs.autograd else None)
    return StageEstimate(
        **_stage_flops(schedule, costs, schedule.stages[s], reached),
        busy=busy, idle=idle, bubble=idle / seconds if seconds else 0.0, kept=memory.kept, peak=memory.peak,
        moment=memory.moment, host=memory.host,
    )  # fmt: skip


def sent_by_stage(schedule: Schedule, s: int, costs: Costs) -> dict[Edge, float]:
    """Bytes that one stage sends, by directed edge."""
    sent: dict[Edge, float] = {}
    for action in (*schedule.stages[s].forward, *schedule.stages[s].backward):
        if action.kind in ("SEND", "REDUCE") and action.edge is not None:
            sent[action.edge] = sent.get(action.edge, 0.0) + _message_bytes(schedule.program, costs, action)
    return sent


def simulate_costs(schedule: Schedule, costs: Costs) -> Simulation:
    """Simulates a schedule with durations of actions and messages that follow from `costs`."""

    def message_seconds(action: ScheduleAction) -> float:
        return costs.latency + _message_bytes(schedule.program, costs, action) / costs.bandwidth

    return simulate(schedule, action_seconds(schedule, costs), message_seconds)


def action_seconds(schedule: Schedule, costs: Costs) -> ActionSeconds:
    """Duration of an action, computed once for every stage, kind and op."""
    known: dict[tuple[int, str, int, bool], float] = {}
    reached = [backward_blocks(stage.ops, costs.blocks, costs.lowest) for stage in schedule.stages]

    def seconds(stage: int, action: ScheduleAction, backward: bool) -> float:
        key = (stage, action.kind, action.op, backward)
        if key not in known:
            flops = _action_flops(schedule, costs, schedule.stages[stage], reached[stage], action, backward)
            known[key] = sum(flops.values()) / costs.speed
        return known[key]

    return seconds


def _stage_flops(schedule: Schedule, costs: Costs, stage: StageSchedule, reached: Reached) -> FlopsByKind:
    total = {"forward": 0.0, "recompute": 0.0, "backward": 0.0}
    known: dict[tuple[str, int, bool], FlopsByKind] = {}
    for backward, actions in ((False, stage.forward), (True, stage.backward)):
        for action in actions:
            if action.edge is not None:
                continue
            key = (action.kind, action.op, backward)
            if key not in known:
                known[key] = _action_flops(schedule, costs, stage, reached, action, backward)
            for kind, flops in known[key].items():
                total[kind] += flops
    return total


def _action_flops(
    schedule: Schedule, costs: Costs, stage: StageSchedule, reached: Reached, action: ScheduleAction, backward: bool
) -> FlopsByKind:
    """FLOPs of one action by kind. `reached`: the blocks of every op of the stage that a gradient reaches."""
    program = schedule.program
    if action.kind == "LOSS":
        op = program.ops[action.op]
        assert isinstance(op, Pass)
        tokens = (op.stop - op.start) * costs.sizes.rows
        head = costs.head * tokens
        if not backward:
            return {"forward": head}
        gradients = 2 * head if costs.head_backward is None else costs.head_backward * tokens
        return {"recompute": 0.0 if schedule.recompute.body == "all" else head, "backward": gradients}
    stage_op = stage.ops[action.op]
    if action.kind == "BWD":
        op = program.ops[action.op]
        assert isinstance(op, Pass)
        return {"backward": _per_micro_batch(program, costs, op, *backward_flops(reached[action.op], costs.blocks))}
    flops = _forward_flops(program, costs, action.op, stage_op.blocks)
    match action.kind:
        case "RECOMPUTE":
            return {"recompute": 0.0 if schedule.recompute.body == "products" else flops}
        case _:
            return {"recompute" if backward else "forward": flops}


def _forward_flops(program: Program, costs: Costs, index: int, blocks: tuple[int, int]) -> float:
    """Forward FLOPs of a range of blocks in one op, over all rows of a micro-batch."""
    op = program.ops[index]
    assert isinstance(op, Pass)
    parts = costs.blocks[slice(*blocks)]
    pairs = [sum(getattr(block, name) for block in parts) for name in ("pair", "local_pair")]
    return _per_micro_batch(program, costs, op, sum(block.token for block in parts), *pairs)


def _per_micro_batch(program: Program, costs: Costs, op: Pass, token: float, *of_pair: float) -> float:
    """FLOPs of one op over all rows of a micro-batch, from those for each token and for each pair of a query and a key."""
    pairs = [pairs_seen(program, op, reach) for reach in costs.reaches]
    return costs.sizes.rows * (token * (op.stop - op.start) + sum(a * b for a, b in zip(of_pair, pairs, strict=True)))


def _message_bytes(program: Program, costs: Costs, action: ScheduleAction) -> float:
    """Bytes of one message."""
    if action.op < 0:
        return costs.tied_bytes
    op = program.ops[action.op]
    assert isinstance(op, Pass)
    return costs.sizes.h * (op.stop - op.start) * costs.sizes.rows
