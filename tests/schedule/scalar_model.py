"""A model of scalars with its own reverse-mode differentiation, run over a program as one graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from sleeptrain.program import Boundary, Pass, Program, Sleep, blocks_of


class Var:
    """A number with its parents in the graph and the derivatives with respect to them."""

    count = 0

    def __init__(self, value: float, parents: Sequence[tuple[Var, float]] = ()) -> None:
        self.value, self.parents = value, parents
        Var.count += 1
        self.order = Var.count

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
    """Five parameters per block, and those of embedding, norm and head."""
    names = [f"{n}{b}" for b in range(depth) for n in "abcde"] + ["embed", "norm", "head"]
    return {name: 0.9 * math.sin(1.7 * i + 0.3) + 0.1 for i, name in enumerate(names)}


def token(op: Pass, micro: int) -> float:
    return 0.3 + 0.17 * op.window + 0.05 * micro + 0.01 * op.stop


def target(op: Pass, micro: int) -> float:
    return 0.2 * op.window - 0.1 * micro


Cells = dict[tuple[str, int], Var]
"""Fast weights (S) and caches (kv) by block."""


def run_op(
    op: Pass, micro: int, blocks: tuple[int, int], h: Var | None, state: Cells, p: dict[str, Var]
) -> tuple[Var, Cells]:
    """Runs one op over a range of blocks; returns the output features and the new state of these blocks."""
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
    """Halves the caches, so that a missing or repeated eviction changes the result."""
    half = Var(0.5)
    return {k: v * half if boundary is not None and k[0] == "kv" else v for k, v in cells.items()}


def norm(h: Var, p: dict[str, Var]) -> Var:
    return (h * p["norm"]).tanh()


def loss(op: Pass, micro: int, h: Var, p: dict[str, Var]) -> Var:
    error = norm(h, p) * p["head"] + Var(-target(op, micro))
    return error * error


def run_as_one_graph(program: Program, sleep: Sleep, depth: int, group: int) -> tuple[float, dict[str, float]]:
    """Loss and gradients of the whole program as one graph."""
    p = {name: Var(value) for name, value in parameters(depth).items()}
    losses = [scored for m in range(group) for scored in _losses(program, sleep, depth, m, p)]
    grads = gradients([(v, 1.0) for v in losses], list(p.values()))
    return sum(v.value for v in losses), dict(zip(p, grads, strict=True))


def _losses(program: Program, sleep: Sleep, depth: int, micro: int, p: dict[str, Var]) -> list[Var]:
    detached = {name: Var(v.value) for name, v in p.items()}
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
        weights = p if op.grad else detached
        h = {"tokens": None, "above": above}.get(op.reads, exit_)
        h = norm(h, weights) if h is not None and op.reads == "normed" else h
        h, new = run_op(op, micro, blocks_of(op.layers, sleep, depth), h, state, weights)
        if op.loss:
            losses.append(loss(op, micro, h, weights))
        if not op.grad:
            h, new = Var(h.value), {k: Var(v.value) for k, v in new.items()}
        state |= new
        above, exit_ = (h, exit_) if op.layers == "prelude" else (above, h if op.layers == "loop" else exit_)
    return losses
