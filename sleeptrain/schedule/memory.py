"""Bytes that a stage keeps while it carries out its actions, by component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sleeptrain.program.program import Pass
from sleeptrain.schedule.reads_writes import outputs, reads_writes
from sleeptrain.schedule.schedule import Schedule, StageOp, StageSchedule, Value

BytesByComponent = Mapping[str, float]
"""Bytes by component: h, received h, S, conv, kv, body, gradients."""
COMPONENTS = ("h", "received h", "S", "conv", "kv", "body", "gradients")

AUTOGRAD_GRAPHS = ("graph", "head")
"""Values that stay on the device where others are put away: autograd holds them."""


@dataclass(frozen=True)
class ValueSizes:
    """Bytes per row of a micro-batch."""

    h: float
    """Features, per token."""
    fast: tuple[float, ...]
    """Fast weights, per block."""
    conv: tuple[float, ...]
    """Convolution tail, per block."""
    kv: tuple[float, ...]
    """Attention cache, per block and token."""
    graph: tuple[float, ...]
    """What backward of a block needs, its input left out, per block and token."""
    cached: tuple[float, ...] = ()
    """What it needs beyond that for every cached token that an attending block reads, per block; none: nothing."""
    head: float = 0.0
    """What backward of the head needs, per token."""
    rows: int = 1


@dataclass(frozen=True)
class MemoryProfile:
    """What a stage keeps over one group."""

    kept: BytesByComponent
    """On the device, at the turn from forward to backward."""
    peak: BytesByComponent
    """On the device, when the sum is largest."""
    host: float
    """In the host's memory at the turn."""
    moved: float
    """Bytes moved to the host's memory and back."""


class Lifetime(NamedTuple):
    """A value from the action that made it to the one that freed it; what the two halves of the step do with it."""

    value: Value
    made: int
    freed: int
    forward: int
    """Last action of the forward half that touches it, or -1."""
    backward: int
    """First action of the backward half that touches it, or -1."""


def memory_profile(schedule: Schedule, stage: int, sizes: ValueSizes) -> MemoryProfile:
    """Bytes kept by one stage. What waits for backward is on the host if the policy offloads, else on the device."""
    at = schedule.stages[stage]
    turn, length = len(at.forward), len(at.forward) + len(at.backward)
    table = _Table(schedule, stage, sizes)
    results_ = outputs(stage, at, schedule.group) if schedule.recompute.offload else set()
    deltas: list[list[tuple[str, float]]] = [[] for _ in range(length + 1)]
    kept, host = dict.fromkeys(COMPONENTS, 0.0), 0.0
    for life in liveness(schedule, stage):
        spans = life.made < turn <= life.freed
        away = spans and schedule.recompute.offload and life.backward >= 0 and life.value not in results_
        away = away and life.value.kind not in AUTOGRAD_GRAPHS
        stays = [(life.made, life.forward), (life.backward, life.freed)] if away else [(life.made, life.freed)]
        for component, size in table.bytes(life.value):
            host += size if away else 0
            kept[component] += size if spans and not away else 0
            for first, last in stays:
                deltas[max(first, 0)].append((component, size))
                deltas[min(last, length - 1) + 1].append((component, -size))
    return MemoryProfile(kept, _peak(deltas), host, 2 * host)


def _peak(deltas: list[list[tuple[str, float]]]) -> BytesByComponent:
    now = dict.fromkeys(COMPONENTS, 0.0)
    best, total, most = dict(now), 0.0, 0.0
    for step in deltas:
        for component, size in step:
            now[component] += size
            total += size
        if total > most:
            best, most = dict(now), total
    return best


def liveness(schedule: Schedule, s: int) -> Iterator[Lifetime]:
    """Every value that a stage holds, with the indices of the actions that make, use and free it."""
    stage = schedule.stages[s]
    turn, actions = len(stage.forward), (*stage.forward, *stage.backward)
    made_at = {Value("S", -1, m, s): -1 for m in range(schedule.group)}
    forward: dict[Value, int] = {}
    backward: dict[Value, int] = {}
    for n, action in enumerate(actions):
        read, made = reads_writes(s, stage.ops.get(action.op), action, n >= turn, schedule.recompute)
        for value in (*read, *made):
            if n < turn:
                forward[value] = n
            else:
                backward.setdefault(value, n)
        for value in made:
            made_at.setdefault(value, n)
        for value in action.frees:
            yield Lifetime(value, made_at.pop(value, n), n, forward.pop(value, -1), backward.pop(value, -1))
    for value, n in made_at.items():
        yield Lifetime(value, n, len(actions), forward.get(value, -1), backward.get(value, -1))


class _Table:
    """Sizes of a stage's values, worked out once for every op."""

    def __init__(self, schedule: Schedule, stage: int, sizes: ValueSizes) -> None:
        self.schedule, self.index, self.sizes = schedule, stage, sizes
        self.stage: StageSchedule = schedule.stages[stage]
        self.known: dict[tuple[str, int, int], list[tuple[str, float]]] = {}

    def bytes(self, value: Value) -> list[tuple[str, float]]:
        """A value's bytes by component."""
        key = (value.kind, value.op, value.stage)
        if key not in self.known:
            found = self._bytes(*key)
            self.known[key] = [(component, size * self.sizes.rows) for component, size in found if size]
        return self.known[key]

    def _bytes(self, kind: str, op: int, stage: int) -> list[tuple[str, float]]:
        sizes, item = self.sizes, self.stage.ops.get(op)
        if kind in ("h", "dh", "rdh"):
            component = "gradients" if kind != "h" else "h" if stage == self.index else "received h"
            return [(component, sizes.h * self._tokens(op))]
        first, stop = item.blocks if item else (self.stage.blocks.start, self.stage.blocks.stop)
        blocks = range(first, stop)
        if kind in ("S", "dS"):
            fast, conv = (sum(per[b] for b in blocks) for per in (sizes.fast, sizes.conv))
            return [("S", fast), ("conv", conv)] if kind == "S" else [("gradients", fast + conv)]
        assert item is not None
        if kind in ("kv", "dkv"):
            cache = sum(sizes.kv[b] for b in blocks) * self._cached(item)
            return [("kv" if kind == "kv" else "gradients", cache)]
        if kind == "blocks":
            return [("body", (len(blocks) - 1) * sizes.h * self._tokens(op))]
        if kind == "head":
            return [("body", sizes.head * self._tokens(op))]
        return [("body", self._graph(item, blocks))]

    def _graph(self, item: StageOp, blocks: range) -> float:
        """What backward of an item needs, but for what it read."""
        tokens, read = self._tokens(item.op), 0
        if item.kv is not None:
            found = self.schedule.program.ops[item.op]
            assert isinstance(found, Pass)
            read = min(found.start, self.schedule.program.span - 1)
        per = [
            self.sizes.graph[b] * tokens + (self.sizes.cached[b] * read if read and self.sizes.cached else 0.0)
            for b in blocks
        ]
        if self.schedule.recompute.body == "block":
            # The inputs of blocks were kept, and one block at a time is computed again.
            return max(per)
        # The first block's input is a value of its own, unless it was made here from tokens.
        between = len(per) - (item.h is not None)
        return sum(per) + between * self.sizes.h * tokens

    def _tokens(self, op: int) -> int:
        found = self.schedule.program.ops[op]
        assert isinstance(found, Pass)
        return found.stop - found.start

    def _cached(self, item: StageOp) -> int:
        op = self.schedule.program.ops[item.op]
        assert isinstance(op, Pass)
        return min(op.stop, item.boundary.keep_kv if item.boundary else op.stop)
