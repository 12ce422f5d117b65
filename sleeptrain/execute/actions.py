"""The compute actions of a schedule: forward, recomputation and backward of a pass, and of its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleeptrain.execute import segment_chain
from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.segment_chain import NOTHING_SAVED, ChainInputs, ChainOutputs, SavedBlocks
from sleeptrain.execute.segments import (
    Entry,
    PassTokens,
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
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import Leaf, State
from sleeptrain.model.state_adjoint import StateAdjoint, fast_leaves
from sleeptrain.program import Pass
from sleeptrain.schedule import Body, Producer, StageOp, Value


@dataclass(frozen=True)
class WorkItem:
    """One op of a stage for one micro-batch."""

    stage_op: StageOp
    op: Pass
    micro: int
    batch: MicroBatch

    @property
    def window(self) -> slice:
        """The tokens of the op's window."""
        return slice(self.op.start, self.op.stop)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The state leaves of the op's blocks."""
        first, stop = self.stage_op.blocks
        return tuple(leaf for leaf in self.batch.state.spec if first <= leaf.layer < stop)

    def output(self, kind: str, stage: int) -> Value:
        """The name of an output of the op, or of a value that belongs to one."""
        return Value(kind, self.stage_op.op, self.micro, stage)

    def input(self, kind: str, producer: Producer) -> Value:
        """The name of an input of the op, or of the gradient of one."""
        return Value(kind, producer.op, self.micro, producer.stage)


class ActionRunner:
    """Runs the compute actions of one stage over one group of micro-batches."""

    def __init__(
        self, model: LanguageModel, micro_batches: Sequence[MicroBatch], plan: StagePlan, store: ActivationStore,
        grads: GradAccumulator, predict: bool = False,
    ) -> None:  # fmt: skip
        """`predict`: only the forward half will run, with the likeliest tokens beside the losses."""
        self.model, self.plan, self.store, self.grads = model, plan, store, grads
        self.body = plan.schedule.recompute.body
        weight = next(model.parameters())
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.nll = [torch.zeros(batch.tokens.shape, dtype=wide, device=weight.device) for batch in micro_batches]
        """Losses in nats [rows, length] by micro-batch, 0 where nothing was scored."""
        self.predicted = [torch.full_like(batch.tokens, -1) for batch in micro_batches] if predict else None
        """The likeliest next tokens [rows, length] by micro-batch, -1 where nothing was scored; None unless asked for."""
        self.d_nll: Sequence[Tensor | None] = [None] * len(micro_batches)
        """The gradients of the losses."""
        self.residuals: list[list[Tensor]] = [[] for _ in micro_batches]
        self.adjoints = [StateAdjoint(batch, plan.schedule.program) for batch in micro_batches]
        """The gradients of S between windows, by micro-batch."""
        self._loop_outputs: dict[int, Tensor] = {}
        """The output of the looped range in the previous pass, by micro-batch; for the residuals."""
        self._state_shapes: dict[tuple[int, int], dict[str, torch.Size]] = {}
        """The shapes of the state before eviction, by op and micro-batch."""

    def forward(self, work: WorkItem, *, recompute: bool) -> None:
        """Run a pass. `recompute`: it ran before, and its outputs are needed again."""
        saves = work.stage_op.backward and not recompute and self.predicted is None
        body: Body = self.body if saves else "none"
        inputs = self._inputs(work)
        outputs = self._run_chain(work, inputs, body)
        if body == "all":
            self._put("graph", work, outputs.graphs)
        elif body != "none":
            self._put("blocks", work, outputs.saved)
        state = State(work.leaves, {**inputs.state, **outputs.changed})
        if work.stage_op.boundary is not None:
            self._state_shapes[work.stage_op.op, work.micro] = {name: t.shape for name, t in state.tensors.items()}
            state = state.evict(work.stage_op.boundary)
        self._put("S", work, {leaf.name: state[leaf.name] for leaf in work.leaves if leaf.kind != "kv"})
        if work.stage_op.makes_kv:
            # Cloned, because a slice keeps the whole cache alive.
            self._put("kv", work, {leaf.name: state[leaf.name].clone() for leaf in work.leaves if leaf.kind == "kv"})
        if work.stage_op.makes_h:
            self._put("h", work, outputs.out)
        if not recompute and self.plan.leaves_loop(work.stage_op):
            self._add_residual(work, outputs.out)

    def loss_forward(self, work: WorkItem) -> None:
        """Compute the losses of a pass from its output features, and the likeliest tokens if they are asked for."""
        if self.predicted is not None:
            _, targets, _ = work.batch.window(work.op)
            nll, predicted = self.model.predict(self._get("h", work), targets)
            self.nll[work.micro][:, work.window], self.predicted[work.micro][:, work.window] = nll, predicted
            return
        segment, h = loss_segment(self.model, work.op, work.batch), self._get("h", work)
        if self.body == "all" and work.stage_op.backward:
            graph = forward_with_grad(segment, h, {})
            self._put("head", work, graph)
            self.nll[work.micro][:, work.window] = graph.out.detach()
        else:
            self.nll[work.micro][:, work.window], _ = forward_no_grad(segment, h, {})

    def recompute_graphs(self, work: WorkItem) -> None:
        """Recompute the graphs of a pass, or that of its last block where block inputs were saved."""
        graphs = segment_chain.graphs_for_backward(self._segments(work), self._inputs(work), self._saved(work))
        self._put("graph", work, graphs)
        if work.stage_op.loss:
            self._put("h", work, graphs[-1].out.detach())

    def loss_backward(self, work: WorkItem) -> None:
        """Compute the gradient of a pass's output features from that of its losses."""
        if self.body == "all":
            graph = self._get("head", work)
        else:
            known = self.nll[work.micro][:, work.window]
            segment = loss_segment(self.model, work.op, work.batch, known)
            graph = forward_with_grad(segment, self._get("h", work), {})
        d_nll = self.d_nll[work.micro]
        d_h = segment_chain.backward_one(graph, None if d_nll is None else d_nll[:, work.window], self.grads)
        self.store.add(work.output("dh", self.plan.index), d_h)

    def backward(self, work: WorkItem) -> None:
        """Compute the gradients of a pass's inputs and weights from those of its outputs."""
        stage_op = work.stage_op
        received = [self.store.get(work.output("rdh", stage)) for stage in stage_op.receives_grad]
        d_out = self._get("dh", work) if stage_op.dh else None
        d_state: dict[str, Tensor] = {}
        for kind, exists in (("dS", stage_op.dS), ("dkv", stage_op.dkv)):
            d_state |= self._get(kind, work) if exists else {}
        if stage_op.boundary is not None:
            clipped = self.adjoints[work.micro].at_boundary(work.op.window, fast_leaves(work.leaves, d_state))
            d_state, shapes = d_state | clipped, self._state_shapes[stage_op.op, work.micro]
            d_state = vjp_eviction(work.leaves, shapes, stage_op.boundary, d_state)
        d_h, d_leaves = self._backward_chain(work, received, d_out, d_state)
        is_cache = {leaf.name: leaf.kind == "kv" for leaf in work.leaves if "pass" in leaf.crosses}
        for kind, producer, cache in (("dS", stage_op.S, False), ("dkv", stage_op.kv, True)):
            if producer is not None and producer.grad:
                d_read = {name: d for name, d in d_leaves.items() if is_cache.get(name) is cache}
                self.store.add_leaves(work.input(kind, producer), d_read)
        if stage_op.h is not None and stage_op.h.grad:
            self.store.add(work.input("dh", stage_op.h), d_h)

    def _run_chain(self, work: WorkItem, inputs: ChainInputs, body: Body) -> ChainOutputs:
        blocks = work.stage_op.blocks[1] - work.stage_op.blocks[0]
        return segment_chain.run(
            self._segments(work), inputs, with_grad=body == "all",
            block_inputs=blocks - 1 if body in ("block", "products") else 0, products=blocks if body == "products" else 0,
        )  # fmt: skip

    def _backward_chain(
        self, work: WorkItem, received: Sequence[Tensor], d_out: Tensor | None, d_state: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The gradients of a pass's features and leaves. That of its output features is the sum of `received`, which
        other stages sent, and `d_out`."""
        graphs, norm = self._get("graph", work), norm_segment(self.model) if work.stage_op.normed else None
        d_out = add_optional(d_out, segment_chain.backward_received(received, norm, graphs[-1].out, self.grads))
        return segment_chain.backward(
            self._segments(work), self._inputs(work), self._saved(work), graphs, d_out, d_state, self.grads
        )

    def _inputs(self, work: WorkItem) -> ChainInputs:
        """The inputs of a pass; leaves that do not cross passes are zero or empty."""
        stage_op, initial = work.stage_op, work.batch.state
        stored = self.store.get(work.input("S", stage_op.S))
        cache = {} if stage_op.kv is None else self.store.get(work.input("kv", stage_op.kv))
        tensors = {
            leaf.name: stored[leaf.name] if leaf.kind != "kv" else cache.get(leaf.name, initial[leaf.name][:, :0])
            for leaf in work.leaves
        }
        grad_kv = stage_op.kv is not None and stage_op.kv.grad
        grad_leaves = frozenset(
            leaf.name for leaf in work.leaves if (grad_kv if leaf.kind == "kv" else stage_op.S.grad)
        )
        h = None if stage_op.h is None else self.store.get(work.input("h", stage_op.h))
        state = State(work.leaves, tensors).cross("pass")
        return ChainInputs(h, state.tensors, stage_op.h is not None and stage_op.h.grad, grad_leaves)

    def _segments(self, work: WorkItem) -> list[Segment]:
        span = self.plan.schedule.program.span
        read, spec = PassTokens.of(work.batch, work.op), work.batch.state.spec
        return block_segments(self.model, work.op, work.stage_op.blocks, span, spec, read, self._entry(work))

    def _entry(self, work: WorkItem) -> Entry:
        h = work.stage_op.h
        if h is None:
            return "embed"
        if work.op.reads == "gated" and h.op != work.stage_op.op:
            return "gated"
        return "norm" if work.op.reads == "normed" and h.stage == self.plan.index else None

    def _saved(self, work: WorkItem) -> SavedBlocks:
        return self._get("blocks", work) if self.body in ("block", "products") else NOTHING_SAVED

    def _add_residual(self, work: WorkItem, out: Tensor) -> None:
        if work.op.index > 1:
            _, _, mask = work.batch.window(work.op)
            self.residuals[work.micro].append(
                self.model.relative_change(out, self._loop_outputs[work.micro], mask.read)
            )
        if work.op.index < work.op.of:
            self._loop_outputs[work.micro] = out
        else:
            del self._loop_outputs[work.micro]

    def _get(self, kind: str, work: WorkItem) -> Any:
        return self.store.get(work.output(kind, self.plan.index))

    def _put(self, kind: str, work: WorkItem, content: Any) -> None:
        self.store.put(work.output(kind, self.plan.index), content)
