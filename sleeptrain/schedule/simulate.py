"""Discrete-event simulation of a schedule under NCCL's rules for messages.

A stage runs its actions in order. Sends and receives are posted without blocking; a stage op waits for the message that
it reads. A communicator keeps the operations that a rank posts in order. A message moves once its send and its receive
are both at the front of their queues: transfers are unbuffered and tags are ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sleeptrain.program import Pass, Program
from sleeptrain.schedule.schedule import Edge, Schedule, ScheduleAction, StageSchedule

ActionSeconds = Callable[[int, ScheduleAction, bool], float]
"""Duration of an action by stage, action and whether it is in the backward half."""
MessageSeconds = Callable[[ScheduleAction], float]
"""Duration of a transfer, by the action that sends the message."""
Message = tuple[Edge, int, int]
"""A message by edge, op and micro-batch."""
Span = tuple[float, float]
"""Begin and end of an action in seconds."""


@dataclass(frozen=True)
class Simulation:
    """Result of a simulation: the span of every action that ran, by stage, and the problems found."""

    spans: tuple[tuple[Span, ...], ...]
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """End of the last action of any stage."""
        return max((stage[-1][1] for stage in self.spans if stage), default=0.0)


class _Posted(NamedTuple):
    """A send or receive and the time at which it was posted."""

    action: ScheduleAction
    time: float


@dataclass
class _Network:
    """Posted sends and receives, and the messages that have arrived."""

    schedule: Schedule
    message_seconds: MessageSeconds
    queues: dict[tuple[str, int], deque[_Posted]] = field(default_factory=dict)
    """Pending operations by communicator and stage."""
    free_at: dict[tuple[str, int], float] = field(default_factory=dict)
    """When the last transfer of a communicator and stage ends."""
    arrived: dict[Message, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def post(self, stage: int, action: ScheduleAction, time: float) -> set[int]:
        """Posts a send or a receive; returns the stages at which messages arrived."""
        assert action.edge is not None
        channel = self.schedule.channels.get(action.edge)
        if channel is None:
            described = describe(self.schedule.program, action)
            self.problems.append(f"stage {stage}, {described}: its edge has no communicator")
            return set()
        self.queues.setdefault((channel, stage), deque()).append(_Posted(action, time))
        return self._match(channel, stage)

    def _match(self, channel: str, stage: int) -> set[int]:
        """Transfers every message whose send and receive are both at the front, beginning with one stage's queue."""
        receivers: set[int] = set()
        pending = [stage]
        while pending:
            rank = pending.pop()
            queue = self.queues.get((channel, rank))
            if not queue:
                continue
            edge = queue[0].action.edge
            assert edge is not None
            peer = edge.dst if rank == edge.src else edge.src
            peer_queue = self.queues.get((channel, peer))
            if not peer_queue or peer_queue[0].action.edge != edge:
                continue
            own, other = queue.popleft(), peer_queue.popleft()
            send, receive = (own, other) if rank == edge.src else (other, own)
            self._transfer(channel, edge, send, receive)
            receivers |= {rank, peer} if receive.action.kind == "REDUCE" else {edge.dst}
            pending += [rank, peer]
        return receivers

    def _transfer(self, channel: str, edge: Edge, send: _Posted, receive: _Posted) -> None:
        """Records the arrival of a message, and a problem if it is not the message that the receiver expects."""
        ends = ((channel, edge.src), (channel, edge.dst))
        start = max(send.time, receive.time, *(self.free_at.get(end, 0.0) for end in ends))
        arrival = start + self.message_seconds(send.action)
        self.free_at |= dict.fromkeys(ends, arrival)
        sent, expected = send.action, receive.action
        if (sent.op, sent.micro) != (expected.op, expected.micro):
            subjects = [describe_subject(self.schedule.program, action) for action in (expected, sent)]
            self.problems.append(f"stage {edge.dst} expects {subjects[0]} and receives {subjects[1]}")
        self.arrived[edge, expected.op, expected.micro] = arrival

    def unmatched(self) -> list[str]:
        """One problem for every queue whose first operation was never matched by the peer."""
        program = self.schedule.program
        return [
            f"communicator {channel!r}: stage {stage} posts {describe(program, queue[0].action)}, which its peer never matches"
            for (channel, stage), queue in self.queues.items()
            if queue
        ]


def simulate(schedule: Schedule, action_seconds: ActionSeconds, message_seconds: MessageSeconds) -> Simulation:
    """Runs a schedule until it completes or deadlocks; takes time linear in the number of actions."""
    network = _Network(schedule, message_seconds)
    actions = [(*stage.forward, *stage.backward) for stage in schedule.stages]
    spans: list[list[Span]] = [[] for _ in schedule.stages]
    ready = deque(range(len(schedule.stages)))
    posted: set[tuple[int, int]] = set()
    while ready:
        s = ready.popleft()
        stage, done = schedule.stages[s], spans[s]
        clock = done[-1][1] if done else 0.0
        while (k := len(done)) < len(actions[s]):
            action, backward, begin = actions[s][k], k >= len(stage.forward), clock
            if action.edge is not None and (s, k) not in posted:
                posted.add((s, k))
                ready.extend(receiver for receiver in network.post(s, action, clock) if receiver != s)
            awaited = awaited_messages(s, stage, action, backward)
            if any(message not in network.arrived for message in awaited):
                break
            begin = max([begin, *(network.arrived[message] for message in awaited)])
            clock = begin + (action_seconds(s, action, backward) if action.edge is None else 0.0)
            done.append((begin, clock))
    problems = [*network.problems, *_deadlocks(schedule.program, actions, spans), *network.unmatched()]
    return Simulation(tuple(map(tuple, spans)), tuple(problems))


def awaited_messages(s: int, stage: StageSchedule, action: ScheduleAction, backward: bool) -> list[Message]:
    """Messages that must have arrived before an action can begin."""
    if action.kind == "REDUCE":
        assert action.edge is not None
        return [(action.edge, action.op, action.micro)]
    stage_op = stage.ops.get(action.op)
    if stage_op is None:
        return []
    if action.kind == "FWD" and not backward and stage_op.h is not None and stage_op.h.stage != s:
        return [(Edge(stage_op.h.stage, s, "forward"), stage_op.h.op, action.micro)]
    if action.kind == "BWD":
        return [(Edge(source, s, "backward"), stage_op.op, action.micro) for source in stage_op.receives_grad]
    return []


def describe_subject(program: Program, action: ScheduleAction) -> str:
    """The window, pass and micro-batch of an action, as text."""
    if action.op < 0:
        return "the tied matrix"
    op = program.ops[action.op]
    layers = f" {op.layers}" if isinstance(op, Pass) and op.layers != "loop" else ""
    return f"window {op.window} pass {getattr(op, 'index', '-')}{layers} micro {action.micro}"


def describe(program: Program, action: ScheduleAction) -> str:
    """An action as text: kind, edge and subject."""
    edge = f" {action.edge.src}->{action.edge.dst} {action.edge.direction}" if action.edge else ""
    return f"{action.kind}{edge} {describe_subject(program, action)}"


def _deadlocks(
    program: Program, actions: Sequence[tuple[ScheduleAction, ...]], spans: Sequence[Sequence[Span]]
) -> list[str]:
    """One problem for every stage that did not run all its actions."""
    return [
        f"deadlock: stage {s} never begins {describe(program, scheduled[len(done)])}"
        for s, (scheduled, done) in enumerate(zip(actions, spans, strict=True))
        if len(done) < len(scheduled)
    ]
