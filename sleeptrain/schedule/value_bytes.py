"""Bytes of the values that a stage holds: features, state, gradients, and what passes save for backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sleeptrain.program import Pass
from sleeptrain.schedule.backward import BackwardBlocks
from sleeptrain.schedule.schedule import Schedule, StageOp, StageSchedule, Value

BytesByComponent = Mapping[str, float]
"""Bytes by component, as in COMPONENTS."""
COMPONENTS = ("h", "received h", "S", "conv", "kv", "body", "gradients")
"""Own and received features, fast weights, convolution tails, attention cache, saved activations inside ops, gradients
of features and state."""


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
    state: tuple[float, ...] = ()
    """Of `graph`: what the state that the block leaves depends on, per block and token; empty: all of it."""
    cached: tuple[float, ...] = ()
    """Saved activations of an attention block beyond that, per block and cached token that it reads; empty: none."""
    head: float = 0.0
    """Saved activations of the head, per token."""
    rows: int = 1


class ValueBytes:
    """Bytes of a stage's values, computed once for every kind, op and producing stage."""

    def __init__(
        self, schedule: Schedule, stage: int, sizes: ValueSizes, reached: Mapping[int, BackwardBlocks] | None
    ) -> None:
        self.schedule, self.index, self.sizes, self.reached = schedule, stage, sizes, reached
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
            saved = range(first, self._end(stage_op))
            products = sum(sizes.products[b] for b in saved) if sizes.products else 0.0
            return [("body", (max(0, len(saved) - 1) * sizes.h + products) * self._tokens(op))]
        if kind == "head":
            return [("body", sizes.head * self._tokens(op))]
        return [("body", self._graph(stage_op))]

    @property
    def _one_at_a_time(self) -> bool:
        return self.schedule.recompute.body in ("block", "products")

    def _end(self, stage_op: StageOp) -> int:
        """The end of the blocks of a stage op of which something is kept for backward."""
        if self.reached is None:
            return stage_op.blocks[1]
        reached = self.reached[stage_op.op]
        return reached.whole.stop if reached.state is None else reached.state + 1

    def recomputed_later(self, stage_op: StageOp | None) -> float:
        """The graph of an op, which a schedule recomputes before the backward of its head, and autograd after it."""
        if stage_op is None or self.reached is None or self.schedule.recompute.body == "all":
            return 0.0
        return self._graph(stage_op) * self.sizes.rows

    def released(self, kind: str, stage_op: StageOp | None) -> list[float]:
        """What a backward action releases by and by: the graph of every block, or that of the head; where one graph is alive at a
        time, nothing, or what autograd has saved for it."""
        if stage_op is None or kind not in ("LOSS", "BWD") or (self._one_at_a_time and self.reached is None):
            return []
        sizes, per_row = self.sizes, self.sizes.rows * self._tokens(stage_op.op)
        if kind == "LOSS":
            return [] if self.schedule.recompute.body != "all" else [sizes.head * per_row]
        if not self._one_at_a_time:
            return [size * sizes.rows for size in self._graphs(stage_op)]
        (first, stop), end = stage_op.blocks, self._end(stage_op)
        products = sizes.products or (0.0,) * stop
        saved = [(sizes.h if b > first else 0.0) + products[b] for b in range(first, end)]
        return [size * per_row for size in [*saved, *[0.0] * (stop - end)]]

    def _graph(self, stage_op: StageOp) -> float:
        """Saved activations of a stage op in its graph: what is saved of blocks is in `blocks`, and their graphs are recomputed one by one."""
        graphs = self._graphs(stage_op)
        return max(graphs) if self._one_at_a_time else sum(graphs)

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
        end, graph = self._end(stage_op), list(self.sizes.graph)
        if self.reached is not None and self.sizes.state and (b := self.reached[stage_op.op].state) is not None:
            graph[b] = self.sizes.state[b]
        found = [
            graph[b] * tokens
            + (self.sizes.cached[b] * cache_read if reads_cache else 0.0)
            # The input of the first block is a value of its own, unless this op embeds the tokens.
            + (inputs if place or stage_op.h is None else 0.0)
            for place, b in enumerate(range(*stage_op.blocks))
        ]
        # Its graph holds the output features, also where other stages alone, or nobody, read them.
        found[-1] += inputs if kept_output else 0.0
        kept = max(0, end - stage_op.blocks[0])
        return [*found[:kept], *[0.0] * (len(found) - kept)]

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
