"""What the actions of a schedule do to the values that a stage holds: items forward, again and back, and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleeptrain.execute import segment_chain
from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.segments import (
    Entry,
    MicroBatch,
    Segment,
    block_segments,
    forward_no_grad,
    forward_with_grad,
    loss_segment,
    norm_segment,
    vjp_eviction,
)
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.execute.store import ActivationStore
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import Leaf, State
from sleeptrain.program import Pass
from sleeptrain.schedule import Producer, StageOp, Value


@dataclass(frozen=True)
class WorkItem:
    """One item for one micro-batch."""

    item: StageOp
    op: Pass
    micro: int
    rows: MicroBatch

    @property
    def part(self) -> slice:
        """The tokens of its window."""
        return slice(self.op.start, self.op.stop)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves of its blocks."""
        first, stop = self.item.blocks
        return tuple(leaf for leaf in self.rows.state.spec if first <= leaf.layer < stop)

    def leaving(self, kind: str, stage: int) -> Value:
        """The name of something that leaves it."""
        return Value(kind, self.item.op, self.micro, stage)

    def read(self, kind: str, source: Producer) -> Value:
        """The name of something that it reads, or that goes back to where that came from."""
        return Value(kind, source.op, self.micro, source.stage)


class ActionRunner:
    """Does the work of one stage in one group of micro-batches."""

    def __init__(
        self,
        model: LanguageModel,
        group: Sequence[MicroBatch],
        plan: StagePlan,
        store: ActivationStore,
        sums: GradAccumulator,
    ) -> None:
        self.model, self.plan, self.store, self.sums = model, plan, store, sums
        self.body = plan.schedule.recompute.body
        weight = next(model.parameters())
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.nll = [torch.zeros(rows.tokens.shape, dtype=wide, device=weight.device) for rows in group]
        """Losses in nats [rows, length], 0 where nothing was scored."""
        self.d_nll: Sequence[Tensor | None] = [None] * len(group)
        self.residuals: list[list[Tensor]] = [[] for _ in group]
        self.exits: dict[int, Tensor] = {}
        """What left the looped range in the pass before, by micro-batch; for the residuals."""
        self.shapes: dict[tuple[int, int], dict[str, torch.Size]] = {}
        """Of states before they were evicted, by op and micro-batch."""

    def forward(self, work: WorkItem, *, again: bool) -> None:
        """Run an item. `again`: it was run before, and what it made is needed anew."""
        keeps = self.body if work.item.backward and not again else "none"
        inputs, blocks = self._inputs(work), work.item.blocks
        between = blocks[1] - blocks[0] - 1 if keeps == "block" else 0
        ran = self._run(work, inputs, keeps == "all", between)
        if keeps == "all":
            self._put("graph", work, ran.nodes)
        elif keeps == "block":
            self._put("blocks", work, ran.between)
        state = State(work.leaves, {**inputs.state, **ran.changed})
        if work.item.boundary is not None:
            self.shapes[work.item.op, work.micro] = {name: t.shape for name, t in state.tensors.items()}
            state = state.evict(work.item.boundary)
        self._put("S", work, {leaf.name: state[leaf.name] for leaf in work.leaves if leaf.kind != "kv"})
        if work.item.makes_kv:
            # A slice would keep all of the cache alive.
            self._put("kv", work, {leaf.name: state[leaf.name].clone() for leaf in work.leaves if leaf.kind == "kv"})
        if work.item.makes_h:
            self._put("h", work, ran.out)
        if not again and self.plan.exits(work.item):
            self._note_exit(work, ran.out)

    def score(self, work: WorkItem) -> None:
        """Apply the head to the features leaving an item."""
        unit, h = loss_segment(self.model, work.op, work.rows), self._get("h", work)
        if self.body == "all" and work.item.backward:
            node = forward_with_grad(unit, h, {})
            self._put("head", work, node)
            self.nll[work.micro][:, work.part] = node.out.detach()
        else:
            self.nll[work.micro][:, work.part], _ = forward_no_grad(unit, h, {})

    def again(self, work: WorkItem) -> None:
        """Run an item again with its graph, or the last block of it where the inputs of blocks were kept."""
        nodes = segment_chain.graphs_for_backward(self._units(work), self._inputs(work), self._between(work))
        self._put("graph", work, nodes)
        if work.item.loss:
            self._put("h", work, nodes[-1].out.detach())

    def back_through_head(self, work: WorkItem) -> None:
        """From the adjoint of the losses to that of the features leaving an item."""
        if self.body == "all":
            node = self._get("head", work)
        else:
            known = self.nll[work.micro][:, work.part]
            node = forward_with_grad(loss_segment(self.model, work.op, work.rows, known), self._get("h", work), {})
        d_nll = self.d_nll[work.micro]
        d_h = segment_chain.backward_one(node, None if d_nll is None else d_nll[:, work.part], self.sums)
        self.store.add(work.leaving("dh", self.plan.index), d_h)

    def back(self, work: WorkItem) -> None:
        """From the adjoints of what left an item to those of what it read, and of its weights."""
        item = work.item
        d_sent = [self.store.get(work.leaving("rdh", stage)) for stage in item.returned]
        d_out = self._get("dh", work) if item.dh else None
        d_state: dict[str, Tensor] = {}
        for kind, there in (("dS", item.dS), ("dkv", item.dkv)):
            d_state |= self._get(kind, work) if there else {}
        if item.boundary is not None:
            d_state = vjp_eviction(work.leaves, self.shapes[item.op, work.micro], item.boundary, d_state)
        d_h, d_leaves = self._back(work, d_sent, d_out, d_state)
        crossing = {leaf.name: leaf.kind == "kv" for leaf in work.leaves if "pass" in leaf.crosses}
        for kind, source, cache in (("dS", item.S, False), ("dkv", item.kv, True)):
            if source is not None and source.grad:
                found = {name: d for name, d in d_leaves.items() if crossing.get(name) is cache}
                self.store.add_leaves(work.read(kind, source), found)
        if item.h is not None and item.h.grad:
            self.store.add(work.read("dh", item.h), d_h)

    def _run(
        self, work: WorkItem, inputs: segment_chain.ChainInputs, graphs: bool, between: int
    ) -> segment_chain.ChainOutputs:
        return segment_chain.run(self._units(work), inputs, graphs=graphs, between=between)

    def _back(
        self, work: WorkItem, d_sent: Sequence[Tensor], d_out: Tensor | None, d_state: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """From the adjoints of features (sent back by other stages, and given here) and leaves to those of what was read."""
        nodes, norm = self._get("graph", work), norm_segment(self.model) if work.item.normed else None
        d_out = add_optional(d_out, segment_chain.backward_received(d_sent, norm, nodes[-1].out, self.sums))
        return segment_chain.backward(
            self._units(work), self._inputs(work), self._between(work), nodes, d_out, d_state, self.sums
        )

    def _inputs(self, work: WorkItem) -> segment_chain.ChainInputs:
        """What an item reads; leaves that do not cross passes are zero, or empty."""
        item, nothing = work.item, work.rows.state
        held = self.store.get(work.read("S", item.S))
        cache = {} if item.kv is None else self.store.get(work.read("kv", item.kv))
        tensors = {
            leaf.name: held[leaf.name] if leaf.kind != "kv" else cache.get(leaf.name, nothing[leaf.name][:, :0])
            for leaf in work.leaves
        }
        wanted = {"kv": item.kv is not None and item.kv.grad}
        wants = frozenset(leaf.name for leaf in work.leaves if wanted.get(leaf.kind, item.S.grad))
        h = None if item.h is None else self.store.get(work.read("h", item.h))
        state = State(work.leaves, tensors).cross("pass")
        return segment_chain.ChainInputs(h, state.tensors, item.h is not None and item.h.grad, wants)

    def _units(self, work: WorkItem) -> list[Segment]:
        span = self.plan.schedule.program.span
        return block_segments(self.model, work.op, work.item.blocks, span, work.rows, self._entry(work))

    def _entry(self, work: WorkItem) -> Entry:
        h = work.item.h
        if h is None:
            return "embed"
        return "norm" if work.op.reads == "normed" and h.stage == self.plan.index else None

    def _between(self, work: WorkItem) -> list[Tensor]:
        return self._get("blocks", work) if self.body == "block" else []

    def _note_exit(self, work: WorkItem, out: Tensor) -> None:
        if work.op.index > 1:
            self.residuals[work.micro].append(self.model.relative_change(out, self.exits[work.micro]))
        if work.op.index < work.op.of:
            self.exits[work.micro] = out
        else:
            del self.exits[work.micro]

    def _get(self, kind: str, work: WorkItem) -> Any:
        return self.store.get(work.leaving(kind, self.plan.index))

    def _put(self, kind: str, work: WorkItem, made: Any) -> None:
        self.store.put(work.leaving(kind, self.plan.index), made)
