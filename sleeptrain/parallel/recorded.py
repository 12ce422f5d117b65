"""A worker whose passes are recorded: each is one function of tensors, forward without a graph, or again and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.state import Leaf, State
from sleeptrain.parallel import chain
from sleeptrain.parallel.plan import Plan
from sleeptrain.parallel.replay import Named, Replays
from sleeptrain.parallel.store import Store
from sleeptrain.parallel.sums import Sums, plus
from sleeptrain.parallel.units import Entry, Rows, Unit, body, build, evaluate, final_norm, head
from sleeptrain.parallel.work import Work, Worker
from sleeptrain.program import Pass


@dataclass(frozen=True)
class Frame:
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


def same_for_all(op: Pass) -> Pass:
    """A pass with what differs between windows, passes and micro-batches left out: its tensors say it."""
    return replace(
        op, window=0, start=0, stop=op.stop - op.start, position0=0, index=1, of=1, layers="loop", reads="raw", loss=False,
        grad=True, detach=False,
    )  # fmt: skip


class RecordedWorker(Worker):
    """Replays what it can. What makes a graph and goes back through it is one recording, head included, so that nothing
    of a recording is needed when another one is replayed."""

    def __init__(
        self, model: LanguageModel, group: Sequence[Rows], plan: Plan, store: Store, replays: Replays
    ) -> None:  # fmt: skip
        super().__init__(model, group, plan, store, replays.sums)
        if self.body == "all":
            raise ValueError("graphs that are kept, one for every pass, cannot be replayed; use another policy")
        self.replays = replays

    def score(self, work: Work) -> None:
        """Apply the head to the features leaving an item."""
        op = replace(same_for_all(work.op), kv_read=False, kv_write=False)
        frame = Frame("the head", op, (0, 0), 0, None)
        _, targets, _ = work.rows.window(work.op)
        inputs = {"h": self._get("h", work), "targets": targets}
        self.nll[work.micro][:, work.part] = self.replays(frame, partial(_score, self.model, frame), inputs)["nll"]

    def again(self, work: Work) -> None:
        """Nothing yet: it is run again when it is gone back through. The timeline sees its values all the same."""
        self._put("graph", work, [])
        if work.item.loss:
            self._put("h", work, None)

    def back_through_head(self, work: Work) -> None:
        """Nothing yet, likewise."""
        self.store.add(work.leaving("dh", self.plan.index), None)

    def _run(self, work: Work, inputs: chain.Inputs, graphs: bool, between: int) -> chain.Ran:
        assert not graphs
        frame = self._frame("a forward pass", work, between=between)
        made = self.replays(
            frame, partial(_forward, self.model, work.rows.state.spec, frame), self._named(work, inputs)
        )
        kept = [made.pop(f"between.{k}") for k in range(between)]
        return chain.Ran(made.pop("h"), made, kept, [])

    def _back(
        self, work: Work, d_sent: Sequence[Tensor], d_out: Tensor | None, d_state: Mapping[str, Tensor]
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
        found = {name.removeprefix("d."): d for name, d in self.replays(frame, function, named, adds=True).items()}
        return found.pop("h", None), found

    def _frame(self, what: str, work: Work, **more: Any) -> Frame:
        span = self.plan.timeline.program.span
        return Frame(what, same_for_all(work.op), work.item.blocks, span, self._entry(work), **more)

    def _named(self, work: Work, inputs: chain.Inputs) -> dict[str, Tensor]:
        """What a pass reads: tokens, which of them are real, their position, features and state."""
        tokens, _, valid = work.rows.window(work.op)
        found = {"tokens": tokens, "position0": tokens.new_full((), work.op.position0), **inputs.state}
        found |= {} if valid is None else {"valid": valid}
        return found if inputs.h is None else found | {"h": inputs.h}


def _score(model: LanguageModel, frame: Frame, named: Named) -> dict[str, Tensor]:
    return {"nll": evaluate(_head(model, frame, named), named["h"], {})[0]}


def _forward(model: LanguageModel, spec: tuple[Leaf, ...], frame: Frame, named: Named) -> dict[str, Tensor]:
    ran = chain.run(
        _units(model, spec, frame, named),
        chain.Inputs(named.get("h"), named, False, frozenset()),
        between=frame.between,
    )
    return {"h": ran.out, **ran.changed} | {f"between.{k}": h for k, h in enumerate(ran.between)}


def _back(
    model: LanguageModel, spec: tuple[Leaf, ...], frame: Frame, sums: Sums, named: Named
) -> dict[str, Tensor]:  # fmt: skip
    """As `Worker` goes back in three actions: the pass again, through the head, through the pass."""
    units = _units(model, spec, frame, named)
    inputs = chain.Inputs(named.get("h"), named, frame.wants_h, frame.wants)
    between = [named[f"between.{k}"] for k in range(frame.between)]
    nodes = chain.last_of(units, inputs, between)
    out, d_out = nodes[-1].out.detach(), named.get("d.h")
    if "d.nll" in named:
        d_out = plus(d_out, chain.through(build(_head(model, frame, named), out, {}), named["d.nll"], sums))
    sent = [d for name, d in named.items() if name.startswith("sent.")]
    d_out = plus(d_out, chain.returned(sent, final_norm(model) if frame.normed else None, out, sums))
    d_changed = {name: named[f"d.{name}"] for unit in units for name in unit.leaves if f"d.{name}" in named}
    d_h, d_leaves = chain.back(units, inputs, between, nodes, d_out, d_changed, sums)
    return {f"d.{name}": d for name, d in d_leaves.items()} | ({} if d_h is None else {"d.h": d_h})


def _units(model: LanguageModel, spec: tuple[Leaf, ...], frame: Frame, named: Named) -> list[Unit]:
    rows = Rows(named["tokens"], named["tokens"], State(spec, {}), named.get("valid"))
    return body(model, frame.op, frame.blocks, frame.span, rows, frame.entry, named["position0"])


def _head(model: LanguageModel, frame: Frame, named: Named) -> Unit:
    return head(model, frame.op, Rows(named["targets"], named["targets"], State((), {})), named.get("known"))
