"""Compute actions replayed as CUDA graphs: one graph for a forward pass, one for its recomputation and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from sleeptrain.execute import segment_chain
from sleeptrain.execute.actions import ActionRunner, WorkItem
from sleeptrain.execute.cuda_graphs import GraphCache, NamedTensors
from sleeptrain.execute.gradients import GradAccumulator, add_optional
from sleeptrain.execute.segment_chain import ChainInputs, ChainOutputs, SavedBlocks
from sleeptrain.execute.segments import (
    Entry,
    PassTokens,
    Segment,
    block_segments,
    forward_no_grad,
    forward_with_grad,
    loss_segment,
    norm_segment,
)
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.execute.store import ActivationStore
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import Leaf, State
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Pass
from sleeptrain.schedule import Body


@dataclass(frozen=True)
class GraphKey:
    """Everything besides tensors that a graph depends on.

    Window, pass, position and micro-batch are not part of it: they are inputs of the graph, which is replayed for all.
    """

    what: str
    op: Pass
    """As `position_independent` returns it."""
    blocks: tuple[int, int]
    span: int
    entry: Entry
    block_inputs: int = 0
    """The number of blocks whose input features are saved."""
    grad_h: bool = False
    """The features that the pass reads need a gradient."""
    grad_leaves: frozenset[str] = frozenset()
    """The state leaves that need a gradient."""
    normed: bool = False
    """Other stages read the output features through the final norm."""

    def __str__(self) -> str:
        first, stop = self.blocks
        return f"{self.what} of blocks {first}..{stop - 1} over {self.op.stop} tokens"


def position_independent(op: Pass) -> Pass:
    """A pass without what differs between windows, passes and micro-batches, which graphs read from tensors."""
    return replace(
        op, window=0, start=0, stop=op.stop - op.start, position0=0, index=1, of=1, layers="loop", reads="raw", loss=False,
        grad=True, detach=False,
    )  # fmt: skip


class GraphedActionRunner(ActionRunner):
    """Replays passes and losses as CUDA graphs.

    Recomputation, loss backward and backward of a pass are one graph, so that no graph reads tensors in the memory of
    another one. Raises ValueError where the policy saves autograd graphs.
    """

    def __init__(
        self, model: LanguageModel, micro_batches: Sequence[MicroBatch], plan: StagePlan, store: ActivationStore,
        graph_cache: GraphCache, predict: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, micro_batches, plan, store, graph_cache.grads, predict)
        if self.body in ("all", "products"):
            raise ValueError(
                "train.cuda_graphs cannot replay what train.recompute = none and selective save; use another policy"
            )
        self.graph_cache = graph_cache

    def loss_forward(self, work: WorkItem) -> None:
        """Compute the losses of a pass from its output features."""
        if self.predicted is not None:
            return super().loss_forward(work)
        op = replace(position_independent(work.op), kv_read=False, kv_write=False)
        key = GraphKey("the head", op, (0, 0), 0, None)
        _, targets, _ = work.batch.window(work.op)
        inputs = {"h": self._get("h", work), "targets": targets}
        self.nll[work.micro][:, work.window] = self.graph_cache(key, partial(_loss, self.model, key), inputs)["nll"]

    def recompute_graphs(self, work: WorkItem) -> None:
        """Does nothing: the graph of the backward pass recomputes. The schedule's values are stored all the same."""
        self._put("graph", work, [])
        if work.stage_op.loss:
            self._put("h", work, None)

    def loss_backward(self, work: WorkItem) -> None:
        """Does nothing: the graph of the backward pass includes the loss."""
        self.store.add(work.output("dh", self.plan.index), None)

    def _run_chain(self, work: WorkItem, inputs: ChainInputs, body: Body) -> ChainOutputs:
        first, stop = work.stage_op.blocks
        block_inputs = stop - first - 1 if body == "block" else 0
        key = self._key("a forward pass", work, block_inputs=block_inputs)
        function = partial(_forward, self.model, work.batch.state.spec, key)
        outputs = self.graph_cache(key, function, self._named(work, inputs))
        saved = [outputs.pop(f"block_input.{k}") for k in range(block_inputs)]
        return ChainOutputs(outputs.pop("h"), outputs, SavedBlocks(saved), [])

    def _backward_chain(
        self, work: WorkItem, received: Sequence[Tensor], d_out: Tensor | None, d_state: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        inputs, block_inputs = self._inputs(work), self._saved(work).inputs
        key = self._key(
            "a backward pass", work, block_inputs=len(block_inputs), grad_h=inputs.grad_h, grad_leaves=inputs.grad_leaves,
            normed=work.stage_op.normed,
        )  # fmt: skip
        named = self._named(work, inputs) | {f"block_input.{k}": h for k, h in enumerate(block_inputs)}
        named |= {f"d.{name}": d for name, d in d_state.items()}
        named |= {f"received.{k}": d for k, d in enumerate(received)}
        named |= {} if d_out is None else {"d.h": d_out}
        d_nll = self.d_nll[work.micro]
        if work.stage_op.loss and d_nll is not None:
            _, named["targets"], _ = work.batch.window(work.op)
            named |= {"d.nll": d_nll[:, work.window], "known": self.nll[work.micro][:, work.window]}
        function = partial(_backward, self.model, work.batch.state.spec, key, self.grads)
        outputs = self.graph_cache(key, function, named, adds=True)
        d_leaves = {name.removeprefix("d."): d for name, d in outputs.items()}
        return d_leaves.pop("h", None), d_leaves

    def _key(self, what: str, work: WorkItem, **options: Any) -> GraphKey:
        span = self.plan.schedule.program.span
        return GraphKey(what, position_independent(work.op), work.stage_op.blocks, span, self._entry(work), **options)

    def _named(self, work: WorkItem, inputs: ChainInputs) -> dict[str, Tensor]:
        """The inputs of a pass by name: tokens, their mask, position of the first token, features and state."""
        tokens, _, mask = work.batch.window(work.op)
        named = {"tokens": tokens, "position0": tokens.new_full((), work.op.position0), **inputs.state, **mask.named()}
        return named if inputs.h is None else named | {"h": inputs.h}


def _loss(model: LanguageModel, key: GraphKey, named: NamedTensors) -> dict[str, Tensor]:
    return {"nll": forward_no_grad(_loss_segment(model, key, named), named["h"], {})[0]}


def _forward(model: LanguageModel, spec: tuple[Leaf, ...], key: GraphKey, named: NamedTensors) -> dict[str, Tensor]:
    inputs = ChainInputs(named.get("h"), named, False, frozenset())
    outputs = segment_chain.run(_segments(model, spec, key, named), inputs, block_inputs=key.block_inputs)
    return {"h": outputs.out, **outputs.changed} | {f"block_input.{k}": h for k, h in enumerate(outputs.saved.inputs)}


def _backward(
    model: LanguageModel, spec: tuple[Leaf, ...], key: GraphKey, grads: GradAccumulator, named: NamedTensors
) -> dict[str, Tensor]:
    """Three actions of `ActionRunner` in one: recomputation, loss backward, backward of the pass."""
    segments = _segments(model, spec, key, named)
    inputs = ChainInputs(named.get("h"), named, key.grad_h, key.grad_leaves)
    saved = SavedBlocks([named[f"block_input.{k}"] for k in range(key.block_inputs)])
    graphs = segment_chain.graphs_for_backward(segments, inputs, saved)
    out, d_out = graphs[-1].out.detach(), named.get("d.h")
    if "d.nll" in named:
        loss = forward_with_grad(_loss_segment(model, key, named), out, {})
        d_out = add_optional(d_out, segment_chain.backward_one(loss, named["d.nll"], grads))
    received = [d for name, d in named.items() if name.startswith("received.")]
    norm = norm_segment(model) if key.normed else None
    d_out = add_optional(d_out, segment_chain.backward_received(received, norm, out, grads))
    d_changed = {name: named[f"d.{name}"] for s in segments for name in s.leaves if f"d.{name}" in named}
    d_h, d_leaves = segment_chain.backward(segments, inputs, saved, graphs, d_out, d_changed, grads)
    return {f"d.{name}": d for name, d in d_leaves.items()} | ({} if d_h is None else {"d.h": d_h})


def _segments(model: LanguageModel, spec: tuple[Leaf, ...], key: GraphKey, named: NamedTensors) -> list[Segment]:
    read = PassTokens(named["tokens"], TokenMask.from_named(named), named["position0"])
    return block_segments(model, key.op, key.blocks, key.span, spec, read, key.entry)


def _loss_segment(model: LanguageModel, key: GraphKey, named: NamedTensors) -> Segment:
    batch = MicroBatch(named["targets"], named["targets"], State((), {}))
    return loss_segment(model, key.op, batch, named.get("known"))
