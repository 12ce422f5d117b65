"""The stage executor: runs one stage's actions over a group of micro-batches, forward and backward, in schedule order.

Every value of the schedule is stored under its name from the action that makes it to the one that frees it. A single stage
is ordinary training; pipeline stages differ from it only by their P2P messages.
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
from sleeptrain.execute.offload import Offloader
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.segments import forward_no_grad, norm_segment
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.execute.store import ActionObserver, ActivationStore
from sleeptrain.execute.stored_bytes import ByteCounter, count_stored
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.model.state import State
from sleeptrain.program import Pass
from sleeptrain.schedule import Edge, ScheduleAction, Value


class StageExecutor:
    """One forward and one backward of a stage over one group of micro-batches."""

    def __init__(
        self, model: LanguageModel, micro_batches: Sequence[MicroBatch], plan: StagePlan, p2p: P2PChannels | None,
        grads: GradAccumulator, graph_cache: GraphCache | None = None, *, predict: bool = False,
    ) -> None:  # fmt: skip
        """`p2p` is None for a single stage. With `graph_cache`, which must outlive the step, passes are replayed as CUDA graphs
        and gradients are accumulated in the cache's buffers instead of `grads`. `predict`: only the forward half will run, with
        the likeliest tokens, and it keeps nothing for backward."""
        self.model, self.micro_batches, self.plan, self.p2p = model, micro_batches, plan, p2p
        self.grads = grads if graph_cache is None else graph_cache.of(model, model.partial_grads()).grads
        self.observer: ActionObserver | None = None
        """Called at the begin and end of every action."""
        self.stage, self.program = plan.stage, plan.schedule.program
        self.predict, self.offload = predict, plan.schedule.recompute.offload and not predict
        self.store = ActivationStore(Offloader(self.offload))
        for micro, batch in enumerate(micro_batches):
            for value in plan.initial_state:
                if value.micro == micro:
                    self.store.put(value, _leaves_of(value, batch.state.detach()))
        if graph_cache is None:
            self.runner = ActionRunner(model, micro_batches, plan, self.store, self.grads, predict)
        else:
            self.runner = GraphedActionRunner(model, micro_batches, plan, self.store, graph_cache, predict)

    def forward(self) -> tuple[Tensor, ...]:
        """Run the forward half: each micro-batch's losses in nats [rows, length], 0 where this stage scored nothing."""
        for n, action in enumerate(self.stage.forward):
            self._run_action(action, False)
            if self.predict:
                self.store.discard(self.plan.saved_after.get(n, ()))
            elif self.offload:
                self.store.offload(self.plan.saved_after.get(n, ()))
        self._flush()
        return tuple(self.runner.nll)

    def backward(self, d_nll: Sequence[Tensor | None]) -> None:
        """Run the backward half from the gradients of the losses; weight gradients are added to `grads`."""
        self.runner.d_nll = d_nll
        for action in self.stage.backward:
            self._run_action(action, True)
        self._flush()

    def result(self, micro: int, nll: Tensor) -> ProgramOutput:
        """The results of the forward half for a micro-batch, with `nll` as its losses."""
        state, residuals = self.micro_batches[micro].state.detach(), self.runner.residuals[micro]
        for value in self.plan.final_state:
            if value.micro == micro:
                state = state.replace(self.store.get(value))
        residual = torch.stack(residuals) if residuals else torch.zeros(0, nll.shape[0], device=nll.device)
        predicted = None if self.runner.predicted is None else self.runner.predicted[micro]
        return ProgramOutput(nll, state, residual, predicted, self.runner.adjoints[micro])

    def bytes(self) -> dict[str, int]:
        """The bytes of stored values on the device at the moment, by component of the planner's estimate."""
        inputs = [t for batch in self.micro_batches for t in (batch.tokens, batch.targets)]
        counter = ByteCounter([*self.model.parameters(), *inputs])
        count_stored(counter, self.store.values, self.plan.index, self.micro_batches[0].state.spec)
        return counter.by_component

    def _run_action(self, action: ScheduleAction, backward: bool) -> None:
        if self.observer:
            self.observer("begin", action)
        if action.edge is not None:
            self._communicate(action, action.edge, backward)
        else:
            self._compute(action, backward)
        if self.observer:
            self.observer("end", action)
        self.store.free(action.frees)

    def _compute(self, action: ScheduleAction, backward: bool) -> None:
        op = self.program.ops[action.op]
        assert isinstance(op, Pass)
        work = WorkItem(self.stage.ops[action.op], op, action.micro, self.micro_batches[action.micro])
        match action.kind:
            case "FWD":
                self.runner.forward(work, recompute=backward)
            case "RECOMPUTE":
                self.runner.recompute_graphs(work)
            case "LOSS" if backward:
                self.runner.loss_backward(work)
            case "LOSS":
                self.runner.loss_forward(work)
            case _:
                self.runner.backward(work)

    def _communicate(self, action: ScheduleAction, edge: Edge, backward: bool) -> None:
        assert self.p2p is not None
        describe = partial(self.plan.describe, action)
        if action.kind == "REDUCE":
            self.p2p.reduce(edge, self.grads.of(self.model.embed.weight), describe)
            return
        op, weight = self.program.ops[action.op], next(self.model.parameters())
        assert isinstance(op, Pass)
        rows, tokens = len(self.micro_batches[action.micro].tokens), op.stop - op.start
        shape = (rows, tokens // self.model.token_shards, self.model.config.width)
        if action.kind == "RECV":
            value = Value("rdh" if backward else "h", action.op, action.micro, edge.src)
            self.store.put(value, self.p2p.receive(edge, weight.new_empty(shape), describe))
        elif backward:
            d_h = self.store.get(Value("dh", action.op, action.micro, edge.dst))
            self.p2p.send(edge, weight.new_zeros(shape) if d_h is None else d_h, describe)
        else:
            h = self.store.get(Value("h", action.op, action.micro, self.plan.index))
            if self.stage.ops[action.op].normed:
                h, _ = forward_no_grad(norm_segment(self.model), h, {})
            self.p2p.send(edge, h, describe)

    def _flush(self) -> None:
        if self.p2p is not None:
            self.p2p.flush()


def _leaves_of(value: Value, state: State) -> dict[str, Tensor]:
    """The leaves of the state that belong to a value: caches to `kv`, the others to `S`."""
    return {leaf.name: state[leaf.name] for leaf in state.spec if (leaf.kind == "kv") == (value.kind == "kv")}
