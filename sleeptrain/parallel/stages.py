"""The interpreter of a timeline: one stage's actions over a group of micro-batches, forward and backward, in their order.

Every value that the timeline names is held here under its name from the action that makes it to the one that frees it. One
stage is the ordinary trainer; the stages of a pipeline differ from it by their messages only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result, moved
from sleeptrain.model.state import Leaf, State
from sleeptrain.parallel import chain
from sleeptrain.parallel.edges import Arriving, Edges
from sleeptrain.parallel.plan import Plan
from sleeptrain.parallel.shelf import Bytes, Shelf, count
from sleeptrain.parallel.sums import Sums, plus
from sleeptrain.parallel.units import Node, Rows, Unit, body, build, evaluate, final_norm, head, pull, pull_eviction
from sleeptrain.program import Action, Edge, Item, Pass, Value

Watch = Callable[[Literal["begin", "arrived", "end"], Action | Value], None]
"""Is told of every action that begins and ends, and of every message that an action waited for."""


@dataclass(frozen=True)
class _Work:
    """One item for one micro-batch."""

    item: Item
    op: Pass
    micro: int
    rows: Rows

    @property
    def part(self) -> slice:
        """The tokens of its window."""
        return slice(self.op.start, self.op.stop)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves of its blocks."""
        first, stop = self.item.blocks
        return tuple(leaf for leaf in self.rows.state.spec if first <= leaf.layer < stop)

    def value(self, kind: str, stage: int) -> Value:
        """Something that leaves it."""
        return Value(kind, self.item.op, self.micro, stage)


class StageRun:
    """One stage's way through one group, once there and once back."""

    def __init__(
        self, model: LanguageModel, group: Sequence[Rows], plan: Plan, edges: Edges | None, sums: Sums,
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.model, self.group, self.plan, self.edges, self.sums, self.watch = model, group, plan, edges, sums, watch
        self.index, self.stage, self.program = plan.index, plan.stage, plan.timeline.program
        self.retain, self.shelf = plan.timeline.retain, Shelf(plan.timeline.retain.offload)
        self.values: dict[Value, Any] = {
            Value("S", -1, m, self.index): dict(rows.state.detach().tensors) for m, rows in enumerate(group)
        }
        weight = next(model.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.nll = [torch.zeros(rows.tokens.shape, dtype=wide, device=self.device) for rows in group]
        self.d_nll: Sequence[Tensor | None] = [None] * len(group)
        self.residuals: list[list[Tensor]] = [[] for _ in group]
        self.shapes: dict[tuple[int, int], dict[str, torch.Size]] = {}
        """Of the state before it was evicted, by op and micro-batch."""
        self.exits: dict[int, Tensor] = {}
        """What left the looped range in the pass before, by micro-batch; for the residual."""

    def forward(self) -> tuple[Tensor, ...]:
        """Carry out the first half: losses in nats [rows, length] of each micro-batch, 0 where nothing was scored here."""
        for n, action in enumerate(self.stage.forward):
            self._carry_out(action, False)
            for value in self.plan.away.get(n, ()):
                self.values[value] = self.shelf.put(self.values[value])
        self._flush()
        self.exits.clear()
        return tuple(self.nll)

    def backward(self, d_nll: Sequence[Tensor | None]) -> None:
        """Carry out the second half, from the adjoints of the losses; gradients of weights go into the sums."""
        self.d_nll = d_nll
        for action in self.stage.backward:
            self._carry_out(action, True)
        self._flush()

    def result(self, micro: int, nll: Tensor) -> Result:
        """What the first half left behind of a micro-batch, with this loss."""
        state, residuals = self.group[micro].state.detach(), self.residuals[micro]
        for value in self.plan.left:
            if value.micro == micro and value in self.values:
                state = state.replace(self.values[value])
        residual = torch.stack(residuals) if residuals else torch.zeros(0, device=nll.device)
        return Result(nll, state, residual, None)

    def bytes(self) -> dict[str, int]:
        """What is held at this moment, in bytes, by component, as `price` has them."""
        given = [t for rows in self.group for t in (rows.tokens, rows.targets)]
        total = Bytes([*self.model.parameters(), *given])
        count(total, self.values, self.index, self.group[0].state.spec)
        return total.by_component

    def _carry_out(self, action: Action, backward: bool) -> None:
        if self.watch:
            self.watch("begin", action)
        if action.edge is not None:
            self._message(action, action.edge, backward)
        else:
            item, op = self.stage.items[action.op], self.program.ops[action.op]
            assert isinstance(op, Pass)
            work = _Work(item, op, action.micro, self.group[action.micro])
            match action.kind, backward:
                case "FWD", _:
                    self._forward(work, backward)
                case "RECOMPUTE", _:
                    self._again(work)
                case "LOSS", False:
                    self._score(work)
                case "LOSS", True:
                    self._back_through_head(work)
                case _:
                    self._back(work)
        for value in action.frees:
            del self.values[value]
        if self.watch:
            self.watch("end", action)

    # Work.

    def _forward(self, work: _Work, again: bool) -> None:
        keeps = self.retain.body if work.item.backward and not again else "none"
        inputs, blocks = self._inputs(work), work.item.blocks
        between = blocks[1] - blocks[0] - 1 if keeps == "block" else 0
        ran = chain.run(self._units(work), inputs, graphs=keeps == "all", between=between)
        if keeps == "all":
            self._make("graph", work, ran.nodes)
        elif keeps == "block":
            self._make("blocks", work, ran.between)
        state = State(work.leaves, {**inputs.state, **ran.changed})
        if work.item.boundary is not None:
            self.shapes[work.item.op, work.micro] = {name: t.shape for name, t in state.tensors.items()}
            state = state.evict(work.item.boundary)
        self._make("S", work, {leaf.name: state[leaf.name] for leaf in work.leaves if leaf.kind != "kv"})
        if work.item.makes_kv:
            # A slice would keep all of the cache alive.
            self._make("kv", work, {leaf.name: state[leaf.name].clone() for leaf in work.leaves if leaf.kind == "kv"})
        if work.item.makes_h:
            self._make("h", work, ran.out)
        if not again and self.plan.exits(work.item):
            self._note_exit(work, ran.out)

    def _again(self, work: _Work) -> None:
        between = self._get(work.value("blocks", self.index)) if self.retain.body == "block" else []
        nodes = chain.last_of(self._units(work), self._inputs(work), between)
        self._make("graph", work, nodes)
        if work.item.loss:
            self._make("h", work, nodes[-1].out.detach())

    def _back(self, work: _Work) -> None:
        item, nodes = work.item, self.values[work.value("graph", self.index)]
        between = self._get(work.value("blocks", self.index)) if self.retain.body == "block" else []
        arrived: Tensor | None = None
        for stage in item.returned:
            arrived = plus(arrived, self._get(work.value("rdh", stage)))
        if item.normed:
            arrived = self._pull(build(final_norm(self.model), nodes[-1].out.detach(), {}), arrived)
        d_out = plus(self.values[work.value("dh", self.index)] if item.dh else None, arrived)
        d_state = dict(self.values[work.value("dS", self.index)]) if item.dS else {}
        d_state |= self.values[work.value("dkv", self.index)] if item.dkv else {}
        inputs = self._inputs(work)
        if item.boundary is not None:
            d_state = pull_eviction(work.leaves, self.shapes[item.op, work.micro], item.boundary, d_state)
        d_h, d_leaves = chain.back(self._units(work), inputs, between, nodes, d_out, d_state, self.sums)
        crossing = {leaf.name: leaf.kind == "kv" for leaf in work.leaves if "pass" in leaf.crosses}
        for kind, source, cache in (("dS", item.S, False), ("dkv", item.kv, True)):
            if source is not None and source.grad:
                value = Value(kind, source.op, work.micro, source.stage)
                total = self.values.setdefault(value, {})
                for name, d in d_leaves.items():
                    if crossing.get(name) is cache:
                        total[name] = total[name] + d if name in total else d
        if item.h is not None and item.h.grad:
            self._add_dh(Value("dh", item.h.op, work.micro, item.h.stage), d_h)

    def _score(self, work: _Work) -> None:
        unit, h = head(self.model, work.op, work.rows), self._get(work.value("h", self.index))
        if self.retain.body == "all" and work.item.backward:
            node = build(unit, h, {})
            self._make("head", work, node)
            nll = node.out.detach()
        else:
            nll, _ = evaluate(unit, h, {})
        self.nll[work.micro][:, work.part] = nll

    def _back_through_head(self, work: _Work) -> None:
        if self.retain.body == "all":
            node = self.values[work.value("head", self.index)]
        else:
            node = build(head(self.model, work.op, work.rows), self._get(work.value("h", self.index)), {})
        d_nll = self.d_nll[work.micro]
        self._add_dh(work.value("dh", self.index), self._pull(node, None if d_nll is None else d_nll[:, work.part]))

    def _pull(self, node: Node, d_out: Tensor | None) -> Tensor | None:
        d_h, _, gradients = pull(node, d_out, {})
        for weight, gradient in gradients:
            self.sums.add(weight, gradient)
        return d_h

    def _units(self, work: _Work) -> list[Unit]:
        h, entry = work.item.h, None
        if h is None:
            entry = "embed"
        elif work.op.reads == "normed" and h.stage == self.index:
            entry = "norm"
        return body(self.model, work.op, work.item.blocks, self.program.span, work.rows, entry)  # type: ignore[arg-type]

    def _inputs(self, work: _Work) -> chain.Inputs:
        """What an item reads; leaves that do not cross passes are zero, or empty."""
        item, at = work.item, partial(Value, micro=work.micro)
        held = self._get(at("S", item.S.op, stage=item.S.stage))
        cache = self._get(at("kv", item.kv.op, stage=item.kv.stage)) if item.kv is not None else {}
        tensors = {
            leaf.name: held[leaf.name] if leaf.kind != "kv" else cache.get(leaf.name, work.rows.state[leaf.name][:, :0])
            for leaf in work.leaves
        }
        state = State(work.leaves, tensors).cross("pass")
        wants = frozenset(
            leaf.name for leaf in work.leaves if (item.kv is not None and item.kv.grad if leaf.kind == "kv" else item.S.grad)
        )  # fmt: skip
        h = None if item.h is None else self._get(at("h", item.h.op, stage=item.h.stage))
        return chain.Inputs(h, state.tensors, item.h is not None and item.h.grad, wants)

    def _note_exit(self, work: _Work, out: Tensor) -> None:
        if work.op.index > 1:
            self.residuals[work.micro].append(moved(out, self.exits[work.micro]))
        if work.op.index < work.op.of:
            self.exits[work.micro] = out
        else:
            self.exits.pop(work.micro, None)

    # Values and messages.

    def _get(self, value: Value) -> Any:
        """A value: here, on its way, or put away."""
        found = self.values[value]
        if isinstance(found, Arriving):
            found = self.values[value] = found.tensor()
            if self.watch:
                self.watch("arrived", value)
        elif self.shelf.offload:
            found = self.values[value] = self.shelf.get(found)
        return found

    def _make(self, kind: str, work: _Work, made: Any) -> None:
        self.values[work.value(kind, self.index)] = made

    def _add_dh(self, value: Value, d_h: Tensor | None) -> None:
        self.values[value] = plus(self.values.get(value), d_h)

    def _message(self, action: Action, edge: Edge, backward: bool) -> None:
        assert self.edges is not None
        say = partial(self.plan.say, action)
        if action.kind == "REDUCE":
            self.edges.reduce(edge, self.sums.of(self.model.embed.weight), say)
            return
        op = self.program.ops[action.op]
        assert isinstance(op, Pass)
        shape = (len(self.group[action.micro].tokens), op.stop - op.start, self.model.config.width)
        if action.kind == "RECV":
            buffer = torch.empty(shape, dtype=self.dtype, device=self.device)
            value = Value("rdh" if backward else "h", action.op, action.micro, edge.src)
            self.values[value] = self.edges.receive(edge, buffer, say)
        elif backward:
            d_h = self.values[Value("dh", action.op, action.micro, edge.dst)]
            self.edges.send(edge, torch.zeros(shape, dtype=self.dtype, device=self.device) if d_h is None else d_h, say)
        else:
            h = self.values[Value("h", action.op, action.micro, self.index)]
            if self.stage.items[action.op].normed:
                h, _ = evaluate(final_norm(self.model), h, {})
            self.edges.send(edge, h, say)

    def _flush(self) -> None:
        if self.edges is not None:
            self.edges.flush()
