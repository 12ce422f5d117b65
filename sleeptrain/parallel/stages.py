"""The interpreter of a timeline: one stage's actions over a group of micro-batches, forward and backward, in their order.

Every value that the timeline names is held under its name from the action that makes it to the one that frees it. One
stage is the ordinary trainer; the stages of a pipeline differ from it by their messages only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result
from sleeptrain.parallel.edges import Edges
from sleeptrain.parallel.plan import Plan
from sleeptrain.parallel.recorded import RecordedWorker
from sleeptrain.parallel.replay import Replays
from sleeptrain.parallel.shelf import Bytes, Shelf, count
from sleeptrain.parallel.store import Store, Watch
from sleeptrain.parallel.sums import Sums
from sleeptrain.parallel.units import Rows, evaluate, final_norm
from sleeptrain.parallel.work import Work, Worker
from sleeptrain.program import Action, Edge, Pass, Value


class StageRun:
    """One stage's way through one group, once there and once back."""

    def __init__(
        self, model: LanguageModel, group: Sequence[Rows], plan: Plan, edges: Edges | None, sums: Sums,
        watch: Watch | None = None, replays: Replays | None = None,
    ) -> None:  # fmt: skip
        """With `replays`, which the caller keeps from step to step, passes are recorded and replayed, and gradients go
        into their sums instead of `sums`."""
        sums = sums if replays is None else replays.of(model).sums
        self.model, self.group, self.plan, self.edges, self.sums, self.watch = model, group, plan, edges, sums, watch
        self.stage, self.program = plan.stage, plan.timeline.program
        self.store = Store(Shelf(plan.timeline.retain.offload), watch)
        for m, rows in enumerate(group):
            self.store.put(Value("S", -1, m, plan.index), dict(rows.state.detach().tensors))
        if replays is None:
            self.worker = Worker(model, group, plan, self.store, sums)
        else:
            self.worker = RecordedWorker(model, group, plan, self.store, replays)

    def forward(self) -> tuple[Tensor, ...]:
        """Carry out the first half: losses in nats [rows, length] of each micro-batch, 0 where nothing was scored here."""
        for n, action in enumerate(self.stage.forward):
            self._carry_out(action, False)
            self.store.put_away(self.plan.away.get(n, ()))
        self._flush()
        return tuple(self.worker.nll)

    def backward(self, d_nll: Sequence[Tensor | None]) -> None:
        """Carry out the second half, from the adjoints of the losses; gradients of weights go into the sums."""
        self.worker.d_nll = d_nll
        for action in self.stage.backward:
            self._carry_out(action, True)
        self._flush()

    def result(self, micro: int, nll: Tensor) -> Result:
        """What the first half left behind of a micro-batch, with this loss."""
        state, residuals = self.group[micro].state.detach(), self.worker.residuals[micro]
        for value in self.plan.left:
            if value.micro == micro:
                state = state.replace(self.store.get(value))
        residual = torch.stack(residuals) if residuals else torch.zeros(0, device=nll.device)
        return Result(nll, state, residual, None)

    def bytes(self) -> dict[str, int]:
        """What is held at this moment on the device, in bytes, by component, as `price` has them."""
        given = [t for rows in self.group for t in (rows.tokens, rows.targets)]
        total = Bytes([*self.model.parameters(), *given])
        count(total, self.store.values, self.plan.index, self.group[0].state.spec)
        return total.by_component

    def _carry_out(self, action: Action, backward: bool) -> None:
        if self.watch:
            self.watch("begin", action)
        if action.edge is not None:
            self._message(action, action.edge, backward)
        else:
            self._work(action, backward)
        if self.watch:
            self.watch("end", action)
        self.store.free(action.frees)

    def _work(self, action: Action, backward: bool) -> None:
        op = self.program.ops[action.op]
        assert isinstance(op, Pass)
        work = Work(self.stage.items[action.op], op, action.micro, self.group[action.micro])
        match action.kind:
            case "FWD":
                self.worker.forward(work, again=backward)
            case "RECOMPUTE":
                self.worker.again(work)
            case "LOSS" if backward:
                self.worker.back_through_head(work)
            case "LOSS":
                self.worker.score(work)
            case _:
                self.worker.back(work)

    def _message(self, action: Action, edge: Edge, backward: bool) -> None:
        assert self.edges is not None
        say = partial(self.plan.say, action)
        if action.kind == "REDUCE":
            self.edges.reduce(edge, self.sums.of(self.model.embed.weight), say)
            return
        op, weight = self.program.ops[action.op], next(self.model.parameters())
        assert isinstance(op, Pass)
        shape = (
            len(self.group[action.micro].tokens),
            (op.stop - op.start) // self.model.slices,
            self.model.config.width,
        )
        if action.kind == "RECV":
            value = Value("rdh" if backward else "h", action.op, action.micro, edge.src)
            self.store.put(value, self.edges.receive(edge, weight.new_empty(shape), say))
        elif backward:
            d_h = self.store.get(Value("dh", action.op, action.micro, edge.dst))
            self.edges.send(edge, weight.new_zeros(shape) if d_h is None else d_h, say)
        else:
            h = self.store.get(Value("h", action.op, action.micro, self.plan.index))
            if self.stage.items[action.op].normed:
                h, _ = evaluate(final_norm(self.model), h, {})
            self.edges.send(edge, h, say)

    def _flush(self) -> None:
        if self.edges is not None:
            self.edges.flush()
