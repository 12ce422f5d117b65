"""An interpreter that runs a schedule on the scalar model.

It does not use the library's table of what actions read and write: a value that a schedule frees too early is missing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from sleeptrain.schedule import Schedule, ScheduleAction, Value
from tests.schedule.scalar_model import Var, evict, gradients, loss, norm, parameters, run_op


class StageInterpreter:
    """Runs the actions of one stage on the values that the stage holds."""

    def __init__(self, schedule: Schedule, index: int, channels: dict) -> None:
        self.schedule, self.index, self.channels = schedule, index, channels
        self.stage = schedule.stages[index]
        self.actions = (*self.stage.forward, *self.stage.backward)
        self.done = 0
        self.p = parameters(max(s.blocks.stop for s in schedule.stages))
        self.grads = dict.fromkeys(self.p, 0.0)
        self.loss = 0.0
        cells = {
            (kind, b): 0.1 * b for kind in ("S", "kv") for b in range(self.stage.blocks.start, self.stage.blocks.stop)
        }
        self.held: dict = {Value("S", -1, m, index): cells for m in range(schedule.group)}
        self.posted: dict = defaultdict(deque)

    def advance(self) -> bool:
        """Runs actions until one waits for a message; returns whether any action ran."""
        begin = self.done
        while self.done < len(self.actions):
            self._receive_messages()
            action = self.actions[self.done]
            if action.kind in ("FWD", "BWD") and any(self.held.get(v, 0) is None for v in self._messages_read(action)):
                break
            {
                "FWD": self.fwd, "RECOMPUTE": self.recompute, "BWD": self.bwd, "LOSS": self.head,
                "SEND": self.send, "RECV": self.recv,
            }[action.kind](action)  # fmt: skip
            for value in action.frees:
                del self.held[value]
            self.done += 1
        return self.done > begin

    def _receive_messages(self) -> None:
        for edge, receives in self.posted.items():
            while receives and self.channels[edge]:
                self.held[receives.popleft()] = self.channels[edge].popleft()

    def _messages_read(self, action: ScheduleAction) -> list[Value]:
        stage_op = self.stage.ops[action.op]
        if action.kind == "FWD":
            return [] if stage_op.h is None else [Value("h", stage_op.h.op, action.micro, stage_op.h.stage)]
        return [Value("rdh", action.op, action.micro, s) for s in stage_op.receives_grad]

    @property
    def backward(self) -> bool:
        return self.done >= len(self.stage.forward)

    def recv(self, action: ScheduleAction) -> None:
        value = Value("rdh" if self.backward else "h", action.op, action.micro, action.edge.src)
        self.held[value] = None
        self.posted[action.edge].append(value)

    def send(self, action: ScheduleAction) -> None:
        if self.backward:
            payload = self.held[Value("dh", action.op, action.micro, action.edge.dst)]
        else:
            payload = self.held[Value("h", action.op, action.micro, self.index)]
            if self.stage.ops[action.op].normed:
                payload = norm(Var(payload), self._vars()).value
        self.channels[action.edge].append(payload)

    def _vars(self) -> dict[str, Var]:
        return {name: Var(value) for name, value in self.p.items()}

    def _run(self, action: ScheduleAction) -> dict:
        """Runs a stage op on detached inputs; returns inputs, parameters and outputs as a graph."""
        stage_op, m = self.stage.ops[action.op], action.micro
        op, p = self.schedule.program.ops[action.op], self._vars()
        h = None if stage_op.h is None else Var(self.held[Value("h", stage_op.h.op, m, stage_op.h.stage)])
        cells = dict(self.held[Value("S", stage_op.S.op, m, stage_op.S.stage)])
        if stage_op.kv is not None:
            cells |= self.held[Value("kv", stage_op.kv.op, m, stage_op.kv.stage)]
        inside = {k: Var(v) for k, v in cells.items()}
        local = stage_op.h is not None and stage_op.h.stage == self.index
        entry = norm(h, p) if h is not None and op.reads == "normed" and local else h
        out, new = run_op(op, m, stage_op.blocks, entry, inside, p)
        sent = norm(out, p) if stage_op.normed else out
        return {"h": h, "cells": inside, "p": p, "out": out, "sent": sent, "new": evict(new, stage_op.boundary)}

    def fwd(self, action: ScheduleAction) -> None:
        graph, m, op = self._run(action), action.micro, action.op
        stage_op = self.stage.ops[op]
        new = {k: v.value for k, v in graph["new"].items()}
        self.held[Value("S", op, m, self.index)] = {k: v for k, v in new.items() if k[0] == "S"}
        if stage_op.makes_kv:
            self.held[Value("kv", op, m, self.index)] = {k: v for k, v in new.items() if k[0] == "kv"}
        if stage_op.makes_h:
            self.held[Value("h", op, m, self.index)] = graph["out"].value
        if stage_op.backward and not self.backward and self.schedule.recompute.body != "none":
            kind = "graph" if self.schedule.recompute.body == "all" else "blocks"
            self.held[Value(kind, op, m, self.index)] = graph

    def recompute(self, action: ScheduleAction) -> None:
        if self.schedule.recompute.body in ("block", "products"):
            assert Value("blocks", action.op, action.micro, self.index) in self.held
        graph = self._run(action)
        self.held[Value("graph", action.op, action.micro, self.index)] = graph
        if self.stage.ops[action.op].loss:
            self.held[Value("h", action.op, action.micro, self.index)] = graph["out"].value

    def head(self, action: ScheduleAction) -> None:
        kept = Value("head", action.op, action.micro, self.index)
        op, p, saves_graphs = self.schedule.program.ops[action.op], self._vars(), self.schedule.recompute.body == "all"
        if self.backward and saves_graphs:
            h, p, out = self.held[kept]
        else:
            h = Var(self.held[Value("h", action.op, action.micro, self.index)])
            out = loss(op, action.micro, h, p)
        if not self.backward:
            self.loss += out.value
            if saves_graphs and self.stage.ops[action.op].backward:
                self.held[kept] = (h, p, out)
            return
        dh, *rest = gradients([(out, 1.0)], [h, *p.values()])
        self._add_grad(Value("dh", action.op, action.micro, self.index), dh)
        self._add_weight_grads(p, rest)

    def bwd(self, action: ScheduleAction) -> None:
        stage_op, m, i = self.stage.ops[action.op], action.micro, action.op
        graph = self.held[Value("graph", i, m, self.index)]
        seeds = [(graph["sent"], self.held[Value("rdh", i, m, s)]) for s in stage_op.receives_grad]
        seeds += [(graph["out"], self.held[Value("dh", i, m, self.index)])] if stage_op.dh else []
        for kind, exists in (("dS", stage_op.dS), ("dkv", stage_op.dkv)):
            if exists:
                seeds += [(graph["new"][k], d) for k, d in self.held[Value(kind, i, m, self.index)].items()]
        inputs = [v for v in (graph["h"], *graph["cells"].values()) if v is not None]
        derivatives = gradients(seeds, [*inputs, *graph["p"].values()])
        d_input = dict(zip(inputs, derivatives, strict=False))
        if stage_op.h is not None and stage_op.h.grad:
            self._add_grad(Value("dh", stage_op.h.op, m, stage_op.h.stage), d_input[graph["h"]])
        for kind, source in (("S", stage_op.S), ("kv", stage_op.kv)):
            if source is not None and source.grad:
                cells = {
                    k: d_input[v]
                    for k, v in graph["cells"].items()
                    if k[0] == kind and stage_op.blocks[0] <= k[1] < stage_op.blocks[1]
                }
                value = Value(f"d{kind}", source.op, m, source.stage)
                before = self.held.get(value, {})
                self.held[value] = {k: before.get(k, 0.0) + d for k, d in cells.items()}
        self._add_weight_grads(graph["p"], derivatives[len(inputs) :])

    def _add_grad(self, value: Value, d: float) -> None:
        self.held[value] = self.held.get(value, 0.0) + d

    def _add_weight_grads(self, p: dict[str, Var], derivatives: Sequence[float]) -> None:
        for name, d in zip(p, derivatives, strict=True):
            self.grads[name] += d


def run_schedule(schedule: Schedule) -> tuple[float, dict[str, float]]:
    """Loss and gradients from running the actions of all stages, summed over stages."""
    channels: dict = defaultdict(deque)
    stages = [StageInterpreter(schedule, s, channels) for s in range(len(schedule.stages))]
    while any([stage.advance() for stage in stages]):
        pass
    assert all(stage.done == len(stage.actions) for stage in stages)
    assert not any(channels.values())
    grads = {name: sum(stage.grads[name] for stage in stages) for name in stages[0].p}
    return sum(stage.loss for stage in stages), grads
