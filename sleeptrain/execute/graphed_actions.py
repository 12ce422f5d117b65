"""A worker whose passes are recorded: each is one function of tensors, forward without a graph, or again and back."""

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
from sleeptrain.execute.segments import (
    Entry,
    MicroBatch,
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
from sleeptrain.model.state import Leaf, State
from sleeptrain.program import Pass


@dataclass(frozen=True)
class GraphKey:
    """All of a pass that is no tensor, and so is the same in every use of a recording of it.

    Which window, which pass, which positions and which micro-batch are no part of it: those are in the tensors.
    """

    what: str
    op: Pass
    """With nothing left in it that says which pass this is."""
    blocks: tuple[int, int]
    span: int
    entry: Entry
    between: int = 0
    """Inputs of so many blocks are kept."""
    wants_h: bool = False
    wants: frozenset[str] = frozenset()
    """Of which of the state's leaves gradients are wanted."""
    normed: bool = False
    """What other stages read went through the final norm."""

    def __str__(self) -> str:
        first, stop = self.blocks
        return f"{self.what} of blocks {first}..{stop - 1} over {self.op.stop} tokens"


def position_independent(op: Pass) -> Pass:
    """A pass with what differs between windows, passes and micro-batches left out: its tensors say it."""
    return replace(
        op, window=0, start=0, stop=op.stop - op.start, position0=0, index=1, of=1, layers="loop", reads="raw", loss=False,
        grad=True, detach=False,
    )  # fmt: skip


class GraphedActionRunner(ActionRunner):
    """Replays what it can. What makes a graph and goes back through it is one recording, head included, so that nothing
    of a recording is needed when another one is replayed."""

    def __init__(
        self, model: LanguageModel, group: Sequence[MicroBatch], plan: StagePlan, store: ActivationStore, graph_cache: GraphCache
    ) -> None:  # fmt: skip
        super().__init__(model, group, plan, store, graph_cache.sums)
        if self.body == "all":
            raise ValueError("graphs that are kept, one for every pass, cannot be replayed; use another policy")
        self.graph_cache = graph_cache

    def score(self, work: WorkItem) -> None:
        """Apply the head to the features leaving an item."""
        op = replace(position_independent(work.op), kv_read=False, kv_write=False)
        frame = GraphKey("the head", op, (0, 0), 0, None)
        _, targets, _ = work.rows.window(work.op)
        inputs = {"h": self._get("h", work), "targets": targets}
        self.nll[work.micro][:, work.part] = self.graph_cache(frame, partial(_score, self.model, frame), inputs)["nll"]

    def again(self, work: WorkItem) -> None:
        """Nothing yet: it is run again when it is gone back through. The schedule sees its values all the same."""
        self._put("graph", work, [])
        if work.item.loss:
            self._put("h", work, None)

    def back_through_head(self, work: WorkItem) -> None:
        """Nothing yet, likewise."""
        self.store.add(work.leaving("dh", self.plan.index), None)

    def _run(
        self, work: WorkItem, inputs: segment_chain.ChainInputs, graphs: bool, between: int
    ) -> segment_chain.ChainOutputs:
        assert not graphs
        frame = self._frame("a forward pass", work, between=between)
        made = self.graph_cache(
            frame, partial(_forward, self.model, work.rows.state.spec, frame), self._named(work, inputs)
        )
        kept = [made.pop(f"between.{k}") for k in range(between)]
        return segment_chain.ChainOutputs(made.pop("h"), made, kept, [])

    def _back(
        self, work: WorkItem, d_sent: Sequence[Tensor], d_out: Tensor | None, d_state: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        inputs, between = self._inputs(work), self._between(work)
        frame = self._frame(
            "a backward pass",
            work,
            between=len(between),
            wants_h=inputs.wants_h,
            wants=inputs.wants,
            normed=work.item.normed,
        )
        named = self._named(work, inputs) | {f"between.{k}": h for k, h in enumerate(between)}
        named |= {f"d.{name}": d for name, d in d_state.items()} | {f"sent.{k}": d for k, d in enumerate(d_sent)}
        named |= {} if d_out is None else {"d.h": d_out}
        d_nll = self.d_nll[work.micro]
        if work.item.loss and d_nll is not None:
            _, named["targets"], _ = work.rows.window(work.op)
            named |= {"d.nll": d_nll[:, work.part], "known": self.nll[work.micro][:, work.part]}
        function = partial(_back, self.model, work.rows.state.spec, frame, self.sums)
        found = {name.removeprefix("d."): d for name, d in self.graph_cache(frame, function, named, adds=True).items()}
        return found.pop("h", None), found

    def _frame(self, what: str, work: WorkItem, **more: Any) -> GraphKey:
        span = self.plan.schedule.program.span
        return GraphKey(what, position_independent(work.op), work.item.blocks, span, self._entry(work), **more)

    def _named(self, work: WorkItem, inputs: segment_chain.ChainInputs) -> dict[str, Tensor]:
        """What a pass reads: tokens, which of them are real, their position, features and state."""
        tokens, _, valid = work.rows.window(work.op)
        found = {"tokens": tokens, "position0": tokens.new_full((), work.op.position0), **inputs.state}
        found |= {} if valid is None else {"valid": valid}
        return found if inputs.h is None else found | {"h": inputs.h}


def _score(model: LanguageModel, frame: GraphKey, named: NamedTensors) -> dict[str, Tensor]:
    return {"nll": forward_no_grad(_head(model, frame, named), named["h"], {})[0]}


def _forward(model: LanguageModel, spec: tuple[Leaf, ...], frame: GraphKey, named: NamedTensors) -> dict[str, Tensor]:
    ran = segment_chain.run(
        _units(model, spec, frame, named),
        segment_chain.ChainInputs(named.get("h"), named, False, frozenset()),
        between=frame.between,
    )
    return {"h": ran.out, **ran.changed} | {f"between.{k}": h for k, h in enumerate(ran.between)}


def _back(
    model: LanguageModel, spec: tuple[Leaf, ...], frame: GraphKey, sums: GradAccumulator, named: NamedTensors
) -> dict[str, Tensor]:  # fmt: skip
    """As `Worker` goes back in three actions: the pass again, through the head, through the pass."""
    units = _units(model, spec, frame, named)
    inputs = segment_chain.ChainInputs(named.get("h"), named, frame.wants_h, frame.wants)
    between = [named[f"between.{k}"] for k in range(frame.between)]
    nodes = segment_chain.graphs_for_backward(units, inputs, between)
    out, d_out = nodes[-1].out.detach(), named.get("d.h")
    if "d.nll" in named:
        d_out = add_optional(
            d_out,
            segment_chain.backward_one(forward_with_grad(_head(model, frame, named), out, {}), named["d.nll"], sums),
        )
    sent = [d for name, d in named.items() if name.startswith("sent.")]
    d_out = add_optional(
        d_out, segment_chain.backward_received(sent, norm_segment(model) if frame.normed else None, out, sums)
    )
    d_changed = {name: named[f"d.{name}"] for unit in units for name in unit.leaves if f"d.{name}" in named}
    d_h, d_leaves = segment_chain.backward(units, inputs, between, nodes, d_out, d_changed, sums)
    return {f"d.{name}": d for name, d in d_leaves.items()} | ({} if d_h is None else {"d.h": d_h})


def _units(model: LanguageModel, spec: tuple[Leaf, ...], frame: GraphKey, named: NamedTensors) -> list[Segment]:
    rows = MicroBatch(named["tokens"], named["tokens"], State(spec, {}), named.get("valid"))
    return block_segments(model, frame.op, frame.blocks, frame.span, rows, frame.entry, named["position0"])


def _head(model: LanguageModel, frame: GraphKey, named: NamedTensors) -> Segment:
    return loss_segment(
        model, frame.op, MicroBatch(named["targets"], named["targets"], State((), {})), named.get("known")
    )
