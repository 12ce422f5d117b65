"""Memory of a stage over a schedule: lifetimes of its values, and bytes by component at and between actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sleeptrain.program import Pass
from sleeptrain.schedule.peak import Moment, StageMoments, Temporaries, largest
from sleeptrain.schedule.reads_writes import inputs, outputs, reads_writes
from sleeptrain.schedule.schedule import Schedule, StageOp, StageSchedule, Value

BytesByComponent = Mapping[str, float]
"""Bytes by component, as in COMPONENTS."""
COMPONENTS = ("h", "received h", "S", "conv", "kv", "body", "gradients")
"""Own and received features, fast weights, convolution tails, attention cache, saved activations inside ops, gradients
of features and state."""

AUTOGRAD_GRAPHS = ("graph", "head")
"""Kinds of values that are never offloaded: autograd owns their tensors."""


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
    """Saved activations of a block without its input, per block and token."""
    products: tuple[float, ...] = ()
    """Under selective recompute: saved outputs of products of a block, per block and token, which `graph` leaves out."""
    cached: tuple[float, ...] = ()
    """Saved activations of an attention block beyond that, per block and cached token that it reads; empty: none."""
    head: float = 0.0
    """Saved activations of the head, per token."""
    rows: int = 1


@dataclass(frozen=True)
class MemoryProfile:
    """Bytes that a stage holds over one group of micro-batches."""

    kept: BytesByComponent
    """On the device, between forward and backward."""
    peak: BytesByComponent
    """On the device, when the sum with `moment` is largest."""
    moment: Moment
    """Gradients of weights and temporaries at that time; zero unless temporaries are given."""
    host: float
    """Offloaded to host memory, between forward and backward."""
    offload_traffic: float
    """Bytes copied to host memory and back."""


class Lifetime(NamedTuple):
    """A value with the indices of the actions that first write it, use it and free it."""

    value: Value
    made: int
    freed: int
    forward: int
    """Last action of the forward half that uses it, or -1."""
    backward: int
    """First action of the backward half that uses it, or -1."""


def memory_profile(
    schedule: Schedule, stage: int, sizes: ValueSizes, temporaries: Temporaries | None = None
) -> MemoryProfile:
    """Bytes that one stage holds.

    A value that is held across the start of backward and used there counts as offloaded from its last use in forward to
    its first use in backward, if the policy offloads and the value is neither an output nor an autograd graph.
    """
    stage_schedule = schedule.stages[stage]
    backward_start = len(stage_schedule.forward)
    last_action = backward_start + len(stage_schedule.backward) - 1
    table = _SizeTable(schedule, stage, sizes)
    offload = schedule.recompute.offload
    final = outputs(stage, stage_schedule, schedule.group) if offload else set()
    deltas: list[list[tuple[str, float]]] = [[] for _ in range(last_action + 2)]
    kept, host = dict.fromkeys(COMPONENTS, 0.0), 0.0
    for life in liveness(schedule, stage):
        saved = life.made < backward_start <= life.freed
        offloaded = saved and offload and life.backward >= 0 and life.value not in final
        offloaded = offloaded and life.value.kind not in AUTOGRAD_GRAPHS
        on_device = [(life.made, life.forward), (life.backward, life.freed)] if offloaded else [(life.made, life.freed)]
        for component, size in table.bytes(life.value):
            host += size if offloaded else 0
            kept[component] += size if saved and not offloaded else 0
            for first, last in on_device:
                deltas[max(first, 0)].append((component, size))
                deltas[min(last, last_action) + 1].append((component, -size))
    moments = list(_moments(schedule, stage, table, temporaries))
    peak, moment = largest(deltas, moments, "body")
    return MemoryProfile(kept, dict.fromkeys(COMPONENTS, 0.0) | dict(peak), moment, host, 2 * host)


def _moments(
    schedule: Schedule, s: int, table: _SizeTable, temporaries: Temporaries | None
) -> Iterator[Iterable[Moment]]:
    """The moments of all actions of a stage, and one after the last action."""
    stage = schedule.stages[s]
    made = None if temporaries is None else StageMoments(temporaries)
    halves = ((False, stage.forward), (True, stage.backward))
    for backward, action in ((half, action) for half, actions in halves for action in actions):
        if made is None:
            yield (Moment(),)
            continue
        stage_op = stage.ops.get(action.op) if action.edge is None else None
        blocks = range(*stage_op.blocks) if stage_op else range(0)
        embeds = stage_op is not None and stage_op.h is None
        graphs = table.released(action.kind, stage_op, temporaries.by_block) if temporaries and backward else ()
        yield list(made.of(action, backward, blocks, embeds, graphs))
    yield ()


def liveness(schedule: Schedule, s: int) -> Iterator[Lifetime]:
    """Lifetime of every value that stage `s` holds, in the order in which values are freed."""
    stage = schedule.stages[s]
    backward_start, actions = len(stage.forward), (*stage.forward, *stage.backward)
    made_at = dict.fromkeys(inputs(s, stage.ops, schedule.group), -1)
    last_forward_use: dict[Value, int] = {}
    first_backward_use: dict[Value, int] = {}
    for n, action in enumerate(actions):
        reads, writes = reads_writes(s, stage.ops.get(action.op), action, n >= backward_start, schedule.recompute)
        for value in (*reads, *writes):
            if n < backward_start:
                last_forward_use[value] = n
            else:
                first_backward_use.setdefault(value, n)
        for value in writes:
            made_at.setdefault(value, n)
        for value in action.frees:
            uses = last_forward_use.pop(value, -1), first_backward_use.pop(value, -1)
            yield Lifetime(value, made_at.pop(value, n), n, *uses)
    for value, n in made_at.items():
        uses = last_forward_use.get(value, -1), first_backward_use.get(value, -1)
        yield Lifetime(value, n, len(actions), *uses)


class _SizeTable:
    """Bytes of a stage's values, computed once for every kind, op and producing stage."""

    def __init__(self, schedule: Schedule, stage: int, sizes: ValueSizes) -> None:
        self.schedule, self.index, self.sizes = schedule, stage, sizes
        self.stage: StageSchedule = schedule.stages[stage]
        producers = [stage_op.h for stage_op in self.stage.ops.values() if stage_op.h is not None]
        self.read_here = {producer.op for producer in producers if producer.stage == stage}
        """Ops whose output features are the input of another op of this stage."""
        self.known: dict[tuple[str, int, int], list[tuple[str, float]]] = {}

    def bytes(self, value: Value) -> list[tuple[str, float]]:
        """Bytes of a value by component, over all rows of a micro-batch."""
        key = (value.kind, value.op, value.stage)
        if key not in self.known:
            per_row = self._bytes_per_row(*key)
            self.known[key] = [(component, size * self.sizes.rows) for component, size in per_row if size]
        return self.known[key]

    def _bytes_per_row(self, kind: str, op: int, stage: int) -> list[tuple[str, float]]:
        sizes, stage_op = self.sizes, self.stage.ops.get(op)
        if kind in ("h", "dh", "rdh"):
            component = "gradients" if kind != "h" else "h" if stage == self.index else "received h"
            return [(component, sizes.h * self._tokens(op))]
        first, stop = stage_op.blocks if stage_op else (self.stage.blocks.start, self.stage.blocks.stop)
        blocks = range(first, stop)
        if kind in ("S", "dS"):
            fast, conv = (sum(per_block[b] for b in blocks) for per_block in (sizes.fast, sizes.conv))
            return [("S", fast), ("conv", conv)] if kind == "S" else [("gradients", fast + conv)]
        if kind in ("kv", "dkv"):
            cache = sum(sizes.kv[b] for b in blocks) * self._cached_tokens(stage_op)
            return [("kv" if kind == "kv" else "gradients", cache)]
        assert stage_op is not None
        if kind == "blocks":
            products = sum(sizes.products[b] for b in blocks) if sizes.products else 0.0
            return [("body", ((len(blocks) - 1) * sizes.h + products) * self._tokens(op))]
        if kind == "head":
            return [("body", sizes.head * self._tokens(op))]
        graphs = self._graphs(stage_op)
        # What is saved of blocks is in `blocks`, and the graph of one block at a time is recomputed.
        return [("body", max(graphs) if self._one_at_a_time else sum(graphs))]

    @property
    def _one_at_a_time(self) -> bool:
        return self.schedule.recompute.body in ("block", "products")

    def released(self, kind: str, stage_op: StageOp | None, by_block: bool) -> list[float]:
        """What a backward action releases by and by: the graph of every block, or that of the head; where one graph is alive at a
        time, nothing, or `by_block` what is saved for it."""
        if stage_op is None or kind not in ("LOSS", "BWD") or (self._one_at_a_time and not by_block):
            return []
        sizes, per_row = self.sizes, self.sizes.rows * self._tokens(stage_op.op)
        if kind == "LOSS":
            return [] if self.schedule.recompute.body != "all" else [sizes.head * per_row]
        if not self._one_at_a_time:
            return [size * sizes.rows for size in self._graphs(stage_op)]
        first, stop = stage_op.blocks
        products = sizes.products or (0.0,) * stop
        return [((sizes.h if b > first else 0.0) + products[b]) * per_row for b in range(first, stop)]

    def _graphs(self, stage_op: StageOp) -> list[float]:
        """Saved activations of the blocks of a stage op, without the inputs that are values of their own."""
        tokens, cache_read = self._tokens(stage_op.op), 0
        if stage_op.kv is not None:
            op = self.schedule.program.ops[stage_op.op]
            assert isinstance(op, Pass)
            cache_read = min(op.position0, self.schedule.program.span - 1)
        reads_cache = cache_read and self.sizes.cached
        inputs = 0.0 if self._one_at_a_time else self.sizes.h * tokens
        kept_output = self.schedule.recompute.body == "all" and stage_op.op not in self.read_here
        found = [
            self.sizes.graph[b] * tokens
            + (self.sizes.cached[b] * cache_read if reads_cache else 0.0)
            # The input of the first block is a value of its own, unless this op embeds the tokens.
            + (inputs if place or stage_op.h is None else 0.0)
            for place, b in enumerate(range(*stage_op.blocks))
        ]
        # Its graph holds the output features, also where other stages alone, or nobody, read them.
        found[-1] += inputs if kept_output else 0.0
        return found

    def _tokens(self, op: int) -> int:
        found = self.schedule.program.ops[op]
        assert isinstance(found, Pass)
        return found.stop - found.start

    def _cached_tokens(self, stage_op: StageOp | None) -> int:
        """Tokens in the attention cache that leaves a stage op; None: the cache with which the step begins."""
        if stage_op is None:
            return self.schedule.program.span - 1
        op = self.schedule.program.ops[stage_op.op]
        assert isinstance(op, Pass)
        cached = op.position0 + op.stop - op.start
        return min(cached, stage_op.boundary.keep_kv if stage_op.boundary else cached)
