"""The interpreter of a schedule: one stage's actions over a group of micro-batches, forward and backward, in their order.

Every value that the schedule names is held under its name from the action that makes it to the one that frees it. One
stage is the ordinary trainer; the stages of a pipeline differ from it by their messages only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sleeptrain.execute.actions import ActionRunner, WorkItem
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.graphed_actions import GraphedActionRunner
from sleeptrain.execute.offload import ByteCounter, Offloader, count_stored
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.segments import MicroBatch, forward_no_grad, norm_segment
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.execute.store import ActionObserver, ActivationStore
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.program import Pass
from sleeptrain.schedule import Edge, ScheduleAction, Value


class StageExecutor:
    """One stage's way through one group, once there and once back."""

    def __init__(
        self, model: LanguageModel, group: Sequence[MicroBatch], plan: StagePlan, edges: P2PChannels | None, sums: GradAccumulator,
        observer: ActionObserver | None = None, graph_cache: GraphCache | None = None,
    ) -> None:  # fmt: skip
        """With `replays`, which the caller keeps from step to step, passes are recorded and replayed, and gradients go
        into their sums instead of `sums`."""
        sums = sums if graph_cache is None else graph_cache.of(model).sums
        self.model, self.group, self.plan, self.edges, self.sums, self.observer = (
            model,
            group,
            plan,
            edges,
            sums,
            observer,
        )
        self.stage, self.program = plan.stage, plan.schedule.program
        self.store = ActivationStore(Offloader(plan.schedule.recompute.offload), observer)
        for m, rows in enumerate(group):
            self.store.put(Value("S", -1, m, plan.index), dict(rows.state.detach().tensors))
        if graph_cache is None:
            self.worker = ActionRunner(model, group, plan, self.store, sums)
        else:
            self.worker = GraphedActionRunner(model, group, plan, self.store, graph_cache)

    def forward(self) -> tuple[Tensor, ...]:
        """Carry out the first half: losses in nats [rows, length] of each micro-batch, 0 where nothing was scored here."""
        for n, action in enumerate(self.stage.forward):
            self._carry_out(action, False)
            self.store.offload(self.plan.away.get(n, ()))
        self._flush()
        return tuple(self.worker.nll)

    def backward(self, d_nll: Sequence[Tensor | None]) -> None:
        """Carry out the second half, from the adjoints of the losses; gradients of weights go into the sums."""
        self.worker.d_nll = d_nll
        for action in self.stage.backward:
            self._carry_out(action, True)
        self._flush()

    def result(self, micro: int, nll: Tensor) -> ProgramOutput:
        """What the first half left behind of a micro-batch, with this loss."""
        state, residuals = self.group[micro].state.detach(), self.worker.residuals[micro]
        for value in self.plan.left:
            if value.micro == micro:
                state = state.replace(self.store.get(value))
        residual = torch.stack(residuals) if residuals else torch.zeros(0, device=nll.device)
        return ProgramOutput(nll, state, residual, None)

    def bytes(self) -> dict[str, int]:
        """What is held at this moment on the device, in bytes, by component, as `price` has them."""
        given = [t for rows in self.group for t in (rows.tokens, rows.targets)]
        total = ByteCounter([*self.model.parameters(), *given])
        count_stored(total, self.store.values, self.plan.index, self.group[0].state.spec)
        return total.by_component

    def _carry_out(self, action: ScheduleAction, backward: bool) -> None:
        if self.observer:
            self.observer("begin", action)
        if action.edge is not None:
            self._message(action, action.edge, backward)
        else:
            self._work(action, backward)
        if self.observer:
            self.observer("end", action)
        self.store.free(action.frees)

    def _work(self, action: ScheduleAction, backward: bool) -> None:
        op = self.program.ops[action.op]
        assert isinstance(op, Pass)
        work = WorkItem(self.stage.ops[action.op], op, action.micro, self.group[action.micro])
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

    def _message(self, action: ScheduleAction, edge: Edge, backward: bool) -> None:
        assert self.edges is not None
        say = partial(self.plan.describe, action)
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
            if self.stage.ops[action.op].normed:
                h, _ = forward_no_grad(norm_segment(self.model), h, {})
            self.edges.send(edge, h, say)

    def _flush(self) -> None:
        if self.edges is not None:
            self.edges.flush()
