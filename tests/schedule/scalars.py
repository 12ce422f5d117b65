"""A model of scalars with its own reverse mode, run in two ways: as one graph, and by carrying out a schedule.

Neither asks the library what an action reads or makes: a value that a schedule freed too early is simply gone.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence

from sleeptrain.program import Boundary, Pass, Program, Sleep, blocks_of
from sleeptrain.schedule import Schedule, Value


class Var:
    """A number that knows what it was made of."""

    made = 0

    def __init__(self, value: float, parents: Sequence[tuple[Var, float]] = ()) -> None:
        self.value, self.parents = value, parents
        Var.made += 1
        self.order = Var.made

    def __add__(self, other: Var) -> Var:
        return Var(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Var) -> Var:
        return Var(self.value * other.value, ((self, other.value), (other, self.value)))

    def tanh(self) -> Var:
        y = math.tanh(self.value)
        return Var(y, ((self, 1 - y * y),))


def gradients(seeds: Sequence[tuple[Var, float]], inputs: Sequence[Var]) -> list[float]:
    """d(sum of seed * output) / d(input), for every input."""
    total: dict[Var, float] = defaultdict(float)
    seen: dict[int, Var] = {}
    stack = [v for v, _ in seeds]
    while stack:
        v = stack.pop()
        if v.order not in seen:
            seen[v.order] = v
            stack += [parent for parent, _ in v.parents]
    for v, seed in seeds:
        total[v] += seed
    for order in sorted(seen, reverse=True):
        for parent, slope in seen[order].parents:
            total[parent] += slope * total[seen[order]]
    return [total[v] for v in inputs]


def parameters(depth: int) -> dict[str, float]:
    """Five numbers a block, and those of embedding, norm and head."""
    names = [f"{n}{b}" for b in range(depth) for n in "abcde"] + ["embed", "norm", "head"]
    return {name: 0.9 * math.sin(1.7 * i + 0.3) + 0.1 for i, name in enumerate(names)}


def token(op: Pass, micro: int) -> float:
    return 0.3 + 0.17 * op.window + 0.05 * micro + 0.01 * op.stop


def target(op: Pass, micro: int) -> float:
    return 0.2 * op.window - 0.1 * micro


Cells = dict[tuple[str, int], Var]
"""Fast weights (S) and caches (kv) by block."""


def item(
    op: Pass, micro: int, blocks: tuple[int, int], h: Var | None, state: Cells, p: dict[str, Var]
) -> tuple[Var, Cells]:
    """One op over some blocks: features out, and the state of these blocks."""
    if h is None:
        h = p["embed"] * Var(token(op, micro))
    new: Cells = {}
    for b in range(*blocks):
        seen = h + state["kv", b] if op.kv_read else h
        s = (p[f"a{b}"] * seen + p[f"b{b}"] * state["S", b]).tanh()
        if op.kv_write:
            new["kv", b] = (p[f"e{b}"] * seen).tanh()
        h = h + (p[f"c{b}"] * s + p[f"d{b}"] * h).tanh()
        new["S", b] = s
    return h, new


def evict(cells: Cells, boundary: Boundary | None) -> Cells:
    """Caches lose half of themselves, so that an eviction left out, or done twice, shows."""
    half = Var(0.5)
    return {k: v * half if boundary is not None and k[0] == "kv" else v for k, v in cells.items()}


def norm(h: Var, p: dict[str, Var]) -> Var:
    return (h * p["norm"]).tanh()


def loss(op: Pass, micro: int, h: Var, p: dict[str, Var]) -> Var:
    error = norm(h, p) * p["head"] + Var(-target(op, micro))
    return error * error


def as_one_graph(program: Program, sleep: Sleep, depth: int, group: int) -> tuple[float, dict[str, float]]:
    """Loss and gradients by walking the program as it reads."""
    p = {name: Var(value) for name, value in parameters(depth).items()}
    losses = [scored for m in range(group) for scored in _walk(program, sleep, depth, m, p)]
    grads = gradients([(v, 1.0) for v in losses], list(p.values()))
    return sum(v.value for v in losses), dict(zip(p, grads, strict=True))


def _walk(program: Program, sleep: Sleep, depth: int, micro: int, p: dict[str, Var]) -> list[Var]:
    fixed = {name: Var(v.value) for name, v in p.items()}
    state: Cells = {(kind, b): Var(0.1 * b) for kind in ("S", "kv") for b in range(depth)}
    losses: list[Var] = []
    above = exit_ = Var(0.0)
    for op in program.ops:
        if isinstance(op, Boundary):
            state = evict(state, op)
            state = {k: Var(v.value) for k, v in state.items()} if op.detach else state
            continue
        if op.detach:
            state = {k: Var(v.value) for k, v in state.items()}
            above, exit_ = Var(above.value), Var(exit_.value)
        with_grad = p if op.grad else fixed
        h = {"tokens": None, "above": above}.get(op.reads, exit_)
        h = norm(h, with_grad) if h is not None and op.reads == "normed" else h
        h, new = item(op, micro, blocks_of(op.layers, sleep, depth), h, state, with_grad)
        if op.loss:
            losses.append(loss(op, micro, h, with_grad))
        if not op.grad:
            h, new = Var(h.value), {k: Var(v.value) for k, v in new.items()}
        state |= new
        above, exit_ = (h, exit_) if op.layers == "prelude" else (above, h if op.layers == "loop" else exit_)
    return losses


class Worker:
    """One stage: carries its actions out with what it holds, and nothing else."""

    def __init__(self, schedule: Schedule, index: int, wires: dict) -> None:
        self.schedule, self.index, self.wires = schedule, index, wires
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
        """Work until something has not arrived; whether anything was done."""
        begin = self.done
        while self.done < len(self.actions):
            self._arrivals()
            action = self.actions[self.done]
            if action.kind in ("FWD", "BWD") and any(self.held.get(v, 0) is None for v in self._inputs(action)):
                break
            {
                "FWD": self.fwd, "RECOMPUTE": self.recompute, "BWD": self.bwd, "LOSS": self.head,
                "SEND": self.send, "RECV": self.recv,
            }[action.kind](action)  # fmt: skip
            for value in action.frees:
                del self.held[value]
            self.done += 1
        return self.done > begin

    def _arrivals(self) -> None:
        for edge, asked in self.posted.items():
            while asked and self.wires[edge]:
                self.held[asked.popleft()] = self.wires[edge].popleft()

    def _inputs(self, action) -> list[Value]:
        it = self.stage.ops[action.op]
        if action.kind == "FWD":
            return [] if it.h is None else [Value("h", it.h.op, action.micro, it.h.stage)]
        return [Value("rdh", action.op, action.micro, s) for s in it.returned]

    @property
    def backward(self) -> bool:
        return self.done >= len(self.stage.forward)

    def recv(self, action) -> None:
        value = Value("rdh" if self.backward else "h", action.op, action.micro, action.edge.src)
        self.held[value] = None
        self.posted[action.edge].append(value)

    def send(self, action) -> None:
        if self.backward:
            payload = self.held[Value("dh", action.op, action.micro, action.edge.dst)]
        else:
            payload = self.held[Value("h", action.op, action.micro, self.index)]
            if self.stage.ops[action.op].normed:
                payload = norm(Var(payload), self._vars()).value
        self.wires[action.edge].append(payload)

    def _vars(self) -> dict[str, Var]:
        return {name: Var(value) for name, value in self.p.items()}

    def _run(self, action) -> dict:
        """An item from detached inputs: its inputs, parameters and outputs as a graph."""
        it, m = self.stage.ops[action.op], action.micro
        op, p = self.schedule.program.ops[action.op], self._vars()
        h = None if it.h is None else Var(self.held[Value("h", it.h.op, m, it.h.stage)])
        cells = dict(self.held[Value("S", it.S.op, m, it.S.stage)])
        if it.kv is not None:
            cells |= self.held[Value("kv", it.kv.op, m, it.kv.stage)]
        inside = {k: Var(v) for k, v in cells.items()}
        local = it.h is not None and it.h.stage == self.index
        entry = norm(h, p) if h is not None and op.reads == "normed" and local else h
        out, new = item(op, m, it.blocks, entry, inside, p)
        sent = norm(out, p) if it.normed else out
        return {"h": h, "cells": inside, "p": p, "out": out, "sent": sent, "new": evict(new, it.boundary)}

    def fwd(self, action) -> None:
        graph, m, op = self._run(action), action.micro, action.op
        it = self.stage.ops[op]
        new = {k: v.value for k, v in graph["new"].items()}
        self.held[Value("S", op, m, self.index)] = {k: v for k, v in new.items() if k[0] == "S"}
        if it.makes_kv:
            self.held[Value("kv", op, m, self.index)] = {k: v for k, v in new.items() if k[0] == "kv"}
        if it.makes_h:
            self.held[Value("h", op, m, self.index)] = graph["out"].value
        if it.backward and not self.backward and self.schedule.recompute.body != "none":
            kind = "graph" if self.schedule.recompute.body == "all" else "blocks"
            self.held[Value(kind, op, m, self.index)] = graph

    def recompute(self, action) -> None:
        if self.schedule.recompute.body == "block":
            assert Value("blocks", action.op, action.micro, self.index) in self.held
        graph = self._run(action)
        self.held[Value("graph", action.op, action.micro, self.index)] = graph
        if self.stage.ops[action.op].loss:
            self.held[Value("h", action.op, action.micro, self.index)] = graph["out"].value

    def head(self, action) -> None:
        kept = Value("head", action.op, action.micro, self.index)
        op, p, all_ = self.schedule.program.ops[action.op], self._vars(), self.schedule.recompute.body == "all"
        if self.backward and all_:
            h, p, out = self.held[kept]
        else:
            h = Var(self.held[Value("h", action.op, action.micro, self.index)])
            out = loss(op, action.micro, h, p)
        if not self.backward:
            self.loss += out.value
            if all_ and self.stage.ops[action.op].backward:
                self.held[kept] = (h, p, out)
            return
        dh, *rest = gradients([(out, 1.0)], [h, *p.values()])
        self._add(Value("dh", action.op, action.micro, self.index), dh)
        self._sum(p, rest)

    def bwd(self, action) -> None:
        it, m, i = self.stage.ops[action.op], action.micro, action.op
        graph = self.held[Value("graph", i, m, self.index)]
        seeds = [(graph["sent"], self.held[Value("rdh", i, m, s)]) for s in it.returned]
        seeds += [(graph["out"], self.held[Value("dh", i, m, self.index)])] if it.dh else []
        for kind, there in (("dS", it.dS), ("dkv", it.dkv)):
            if there:
                seeds += [(graph["new"][k], d) for k, d in self.held[Value(kind, i, m, self.index)].items()]
        inputs = [v for v in (graph["h"], *graph["cells"].values()) if v is not None]
        found = gradients(seeds, [*inputs, *graph["p"].values()])
        slope = dict(zip(inputs, found, strict=False))
        if it.h is not None and it.h.grad:
            self._add(Value("dh", it.h.op, m, it.h.stage), slope[graph["h"]])
        for kind, source in (("S", it.S), ("kv", it.kv)):
            if source is not None and source.grad:
                cells = {
                    k: slope[v]
                    for k, v in graph["cells"].items()
                    if k[0] == kind and it.blocks[0] <= k[1] < it.blocks[1]
                }
                value = Value(f"d{kind}", source.op, m, source.stage)
                before = self.held.get(value, {})
                self.held[value] = {k: before.get(k, 0.0) + d for k, d in cells.items()}
        self._sum(graph["p"], found[len(inputs) :])

    def _add(self, value: Value, d: float) -> None:
        self.held[value] = self.held.get(value, 0.0) + d

    def _sum(self, p: dict[str, Var], found: Sequence[float]) -> None:
        for name, d in zip(p, found, strict=True):
            self.grads[name] += d


def by_schedule(schedule: Schedule) -> tuple[float, dict[str, float]]:
    """Loss and gradients by carrying out the actions of all stages, summed over stages."""
    wires: dict = defaultdict(deque)
    workers = [Worker(schedule, s, wires) for s in range(len(schedule.stages))]
    while any([worker.advance() for worker in workers]):
        pass
    assert all(worker.done == len(worker.actions) for worker in workers)
    assert not any(wires.values())
    grads = {name: sum(worker.grads[name] for worker in workers) for name in workers[0].p}
    return sum(worker.loss for worker in workers), grads
