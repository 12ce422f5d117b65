"""Carries out a schedule on a clock, under NCCL's rules for messages.

A stage works its actions off one after the other. Sends and receives are posted and do not hold it up; an item waits for
the message that it reads. A communicator keeps what one rank posts in order, and a message moves only when its send and
its receive are both at the front (unbuffered; tags mean nothing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sleeptrain.program.program import Pass, Program
from sleeptrain.schedule.schedule import Edge, Schedule, ScheduleAction, StageOp, StageSchedule

Seconds = Callable[[int, ScheduleAction, bool], float]
"""How long a stage needs for an action, by stage, action and whether it is in the backward half."""
Transit = Callable[[ScheduleAction], float]
"""How long a message is under way, by the action that sends it."""
Arrival = tuple[Edge, int, int]
"""A message by edge, op and micro-batch."""


@dataclass(frozen=True)
class Simulation:
    """What happened: begin and end of every action carried out, by stage; what went wrong."""

    spans: tuple[tuple[tuple[float, float], ...], ...]
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """When the last stage was done."""
        return max((stage[-1][1] for stage in self.spans if stage), default=0.0)


class _Post(NamedTuple):
    action: ScheduleAction
    time: float


@dataclass
class _World:
    """Everything that changes while a schedule runs."""

    schedule: Schedule
    transit: Transit
    queues: dict[tuple[str, int], deque[_Post]] = field(default_factory=dict)
    free: dict[tuple[str, int], float] = field(default_factory=dict)
    arrived: dict[Arrival, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def post(self, stage: int, action: ScheduleAction, time: float) -> set[int]:
        """Queue a send or a receive; returns the stages for which something arrived."""
        assert action.edge is not None
        channel = self.schedule.channels.get(action.edge)
        if channel is None:
            self.wrong.append(
                f"stage {stage}, {describe(self.schedule.program, action)}: no communicator carries its edge"
            )
            return set()
        self.queues.setdefault((channel, stage), deque()).append(_Post(action, time))
        return self._match(channel, stage)

    def _match(self, channel: str, stage: int) -> set[int]:
        """Move every message whose two ends are both at the front, beginning at one stage's queue."""
        woken: set[int] = set()
        look = [stage]
        while look:
            rank = look.pop()
            mine = self.queues.get((channel, rank))
            if not mine:
                continue
            edge = mine[0].action.edge
            assert edge is not None
            peer = edge.dst if rank == edge.src else edge.src
            theirs = self.queues.get((channel, peer))
            if not theirs or theirs[0].action.edge != edge:
                continue
            a, b = mine.popleft(), theirs.popleft()
            sent, received = (a, b) if rank == edge.src else (b, a)
            ends = ((channel, rank), (channel, peer))
            start = max(a.time, b.time, *(self.free.get(end, 0.0) for end in ends))
            end = start + self.transit(sent.action)
            self.free |= dict.fromkeys(ends, end)
            got, asked = sent.action, received.action
            if (got.op, got.micro) != (asked.op, asked.micro):
                program = self.schedule.program
                self.wrong.append(
                    f"stage {edge.dst} asked for {describe_subject(program, asked)} and got {describe_subject(program, got)}"
                )
            self.arrived[edge, asked.op, asked.micro] = end
            woken |= {rank, peer} if asked.kind == "REDUCE" else {edge.dst}
            look += [rank, peer]
        return woken


def simulate(schedule: Schedule, seconds: Seconds, transit: Transit) -> Simulation:
    """Run a schedule until it is done or stuck; linear in the number of its actions."""
    world = _World(schedule, transit)
    actions = [(*stage.forward, *stage.backward) for stage in schedule.stages]
    spans: list[list[tuple[float, float]]] = [[] for _ in schedule.stages]
    ready = deque(range(len(schedule.stages)))
    posted: set[tuple[int, int]] = set()
    while ready:
        s = ready.popleft()
        stage, mine = schedule.stages[s], spans[s]
        turn = len(stage.forward)
        clock = mine[-1][1] if mine else 0.0
        while (k := len(mine)) < len(actions[s]):
            action, backward, begin = actions[s][k], k >= turn, clock
            if action.edge is not None and (s, k) not in posted:
                posted.add((s, k))
                ready.extend(other for other in world.post(s, action, clock) if other != s)
            for message in awaited_messages(s, stage, action, backward):
                if message not in world.arrived:
                    break
                begin = max(begin, world.arrived[message])
            else:
                clock = begin + (seconds(s, action, backward) if action.edge is None else 0.0)
                mine.append((begin, clock))
                continue
            break
    problems = [*world.wrong, *_stuck(schedule, actions, spans), *_left(world)]
    return Simulation(tuple(map(tuple, spans)), tuple(problems))


def awaited_messages(s: int, stage: StageSchedule, action: ScheduleAction, backward: bool) -> list[Arrival]:
    """Messages that must have arrived before an action can begin."""
    if action.kind == "REDUCE":
        assert action.edge is not None
        return [(action.edge, action.op, action.micro)]
    item: StageOp | None = stage.ops.get(action.op)
    if item is None:
        return []
    if action.kind == "FWD" and not backward and item.h is not None and item.h.stage != s:
        return [(Edge(item.h.stage, s, "forward"), item.h.op, action.micro)]
    if action.kind == "BWD":
        return [(Edge(back, s, "backward"), item.op, action.micro) for back in item.returned]
    return []


def describe_subject(program: Program, action: ScheduleAction) -> str:
    """An action's subject in words."""
    if action.op < 0:
        return "the shared matrix"
    op = program.ops[action.op]
    part = f" {op.layers}" if isinstance(op, Pass) and op.layers != "loop" else ""
    return f"window {op.window} pass {getattr(op, 'index', '-')}{part} micro {action.micro}"


def describe(program: Program, action: ScheduleAction) -> str:
    """An action in words."""
    edge = action.edge
    way = f" {edge.src}->{edge.dst} {edge.direction}" if edge else ""
    return f"{action.kind}{way} {describe_subject(program, action)}"


def _stuck(
    schedule: Schedule, actions: list[tuple[ScheduleAction, ...]], spans: list[list[tuple[float, float]]]
) -> list[str]:
    """One line for every stage that waits for ever."""
    found = []
    for s, (mine, done) in enumerate(zip(actions, spans, strict=True)):
        if len(done) < len(mine):
            found.append(f"deadlock: stage {s} waits for ever before {describe(schedule.program, mine[len(done)])}")
    return found


def _left(world: _World) -> list[str]:
    """One line for every message that one side still waits to pass."""
    return [
        f"communicator {channel!r}: {describe(world.schedule.program, queue[0].action)} of stage {stage} finds no partner"
        for (channel, stage), queue in world.queues.items()
        if queue
    ]
