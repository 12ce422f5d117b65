"""One micro-batch on its way through the layers of one process: pass by pass forth, and pass by pass back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import Leaf, State
from sleeptrain.parallel.shelf import KINDS, Bytes, Held, Shelf
from sleeptrain.parallel.sums import Sums, plus
from sleeptrain.parallel.units import Node, Rows, Unit, body, build, evaluate, head, pull, pull_eviction
from sleeptrain.program import Boundary, Pass

Policy = Literal["none", "block", "pass", "window"]
"""What is kept for backward: `none` recomputes nothing; `block` keeps the features entering every block and the state
entering every pass; `pass` features and state entering every pass; `window` the state entering every window."""


@dataclass
class Record:
    """What is kept of one pass."""

    h: Held | None
    """The features that enter it; None where it reads tokens."""
    state: dict[str, Held]
    """The state that enters it."""
    inputs: list[Held | None] = field(default_factory=list)
    """Under `block`: the features that enter each unit."""
    nodes: list[Node] = field(default_factory=list)
    """Under `none`: the units, with their graphs."""


class Track:
    """Runs the passes of a micro-batch over the blocks of one process and keeps what a policy says.

    `rows.state` holds the leaves of these blocks. Features come and go through arguments and results; the state, and on
    the way back its adjoint, stay here.
    """

    def __init__(self, model: LanguageModel, rows: Rows, span: int, shelf: Shelf, sums: Sums) -> None:
        self.model, self.rows, self.span, self.shelf, self.sums = model, rows, span, shelf, sums
        self.state = rows.state.detach()
        self.records: dict[Pass, Record] = {}
        self.starts: dict[Pass, dict[str, Held]] = {}
        """The states that entered windows."""
        self.shapes: dict[Boundary, dict[str, torch.Size]] = {}
        self.adjoint: dict[str, Tensor] = {}
        """Of the state; a missing leaf's is zero."""

    def forward(self, op: Pass, blocks: tuple[int, int], h: Tensor | None, keep: Policy | None) -> Tensor:
        """Run a pass over `blocks`: the features that enter it (None: it reads tokens) -> those that leave it."""
        record = self.note(op, blocks, h) if keep else None
        state = self.state.cross("pass")
        for unit in body(self.model, op, blocks, self.span, self.rows):
            h, changed = self._run(unit, op, h, state.tensors, keep, record)
            state = state.replace(changed)
        self.state = state
        assert h is not None
        return h

    def score(self, op: Pass, h: Tensor, keep: Policy | None) -> Tensor:
        """The loss of a pass in nats [rows, tokens of its window], from the features that left it."""
        return self._run(head(self.model, op, self.rows), op, h, {}, keep, self.records.get(op))[0]

    def note(self, op: Pass, blocks: tuple[int, int], h: Tensor | None) -> Record | None:
        """Keep what enters a pass, if it will be differentiated."""
        if not op.grad:
            return None
        self.state = self.state.cross("pass")
        entering = {leaf.name: self.state[leaf.name] for leaf in self.leaves(blocks)}
        self.records[op] = Record(None if h is None else self.shelf.put(h), self.shelf.put_all(entering))
        return self.records[op]

    def note_window(self, first: Pass) -> None:
        """Keep the state that enters a window with its first pass."""
        self.starts[first] = self.shelf.put_all(self.state.cross("pass").tensors)

    def rewind(self, first: Pass) -> None:
        """Go back to the state that entered a window."""
        self.state = self.state.replace(self.shelf.get_all(self.starts.pop(first)))

    def _run(
        self, unit: Unit, op: Pass, h: Tensor | None, state: Mapping[str, Tensor], keep: Policy | None, record: Record | None
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        if record is not None and keep == "none":
            node = build(unit, h, state, cut=op.detach, cut_h=op.detach and not record.nodes)
            record.nodes.append(node)
            return node.out.detach(), {name: value.detach() for name, value in node.changed.items()}
        if record is not None and keep == "block":
            record.inputs.append(None if h is None else self.shelf.put(h))
        return evaluate(unit, h, state)

    def evict(self, boundary: Boundary) -> None:
        """What happens to the state after a window."""
        self.shapes[boundary] = {leaf.name: self.state[leaf.name].shape for leaf in self.state.spec}
        left = self.state.evict(boundary)
        # A slice would keep all of the cache alive.
        whole = {leaf.name: left[leaf.name].clone() for leaf in left.spec if leaf.kind == "kv"}
        self.state = left.replace(whole)

    def back(self, op: Pass, blocks: tuple[int, int], d_out: Tensor | None, d_nll: Tensor | None) -> Tensor | None:
        """Back through a pass: the adjoint of the features that left it -> of those that entered it. None means zero."""
        record = self.records.pop(op, None)
        written = {leaf.name for leaf in self.leaves(blocks) if leaf.kind != "kv" or op.kv_write}
        live = d_out is not None or d_nll is not None or not written.isdisjoint(self.adjoint)
        d_h = d_out
        if record is None or not live:
            d_h, self.adjoint = None, {name: d for name, d in self.adjoint.items() if name not in written}
        else:
            nodes = self._nodes(op, blocks, record)
            if op.loss:
                d_h = plus(d_h, self._pull(next(nodes), d_nll))
            for node in nodes:
                d_h = self._pull(node, d_h)
        self.adjoint = {name: d for name, d in self.adjoint.items() if self._crosses(name)}
        if op.detach:
            self.adjoint, d_h = {}, None
        return d_h

    def back_from_eviction(self, boundary: Boundary) -> None:
        """Back through an eviction."""
        self.adjoint = pull_eviction(self.state.spec, self.shapes.pop(boundary), boundary, self.adjoint)

    def leaves(self, blocks: tuple[int, int]) -> list[Leaf]:
        """The leaves of some blocks."""
        return [leaf for leaf in self.state.spec if blocks[0] <= leaf.layer < blocks[1]]

    def count(self, total: Bytes) -> None:
        """Add what is kept here to `total`."""
        kinds = {leaf.name: KINDS[leaf.kind] for leaf in self.state.spec}
        for state in [*self.starts.values(), *(record.state for record in self.records.values())]:
            for name, held in state.items():
                total.add(kinds[name], [held.tensor])
        for record in self.records.values():
            total.add("h", [held.tensor for held in [record.h, *record.inputs] if held is not None])
        for record in self.records.values():
            for node in record.nodes:
                total.add("body", node.saved())

    def _nodes(self, op: Pass, blocks: tuple[int, int], record: Record) -> Iterator[Node]:
        """The units of a pass with their graphs, last first; each is forgotten here when the next is asked for."""
        if not record.nodes:
            state = State(self.state.spec, {**self.state.tensors, **self.shelf.get_all(record.state)}).cross("pass")
            units = body(self.model, op, blocks, self.span, self.rows)
            units += [head(self.model, op, self.rows)] if op.loss else []
            if record.inputs:
                while units:
                    held = record.inputs.pop()
                    h = None if held is None else self.shelf.get(held)
                    yield build(units.pop(), h, state.tensors, cut=op.detach, cut_h=op.detach and not units)
                return
            h = None if record.h is None else self.shelf.get(record.h)
            for unit in units:
                node = build(unit, h, state.tensors, cut=op.detach, cut_h=op.detach and not record.nodes)
                record.nodes.append(node)
                h = node.out.detach()
        while record.nodes:
            yield record.nodes.pop()

    def _pull(self, node: Node, d_out: Tensor | None) -> Tensor | None:
        d_h, d_leaves, gradients = pull(node, d_out, self.adjoint)
        for name in node.changed:
            self.adjoint.pop(name, None)
        for name, adjoint in d_leaves.items():
            self.adjoint[name] = adjoint + self.adjoint[name] if name in self.adjoint else adjoint
        for weight, gradient in gradients:
            self.sums.add(weight, gradient)
        return d_h

    def _crosses(self, name: str) -> bool:
        return any(leaf.name == name and "pass" in leaf.crosses for leaf in self.state.spec)
