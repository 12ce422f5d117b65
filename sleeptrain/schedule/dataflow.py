"""What every item of a program reads, makes and hands on, once the stack is cut into stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sleeptrain.program.program import Boundary, Layers, Pass, Program
from sleeptrain.schedule.schedule import Producer, StageBlocks, StageOp

Key = tuple[int, int]
"""An op and a stage."""


@dataclass(frozen=True)
class _Reads:
    """An item's inputs as keys; op -1 for the state before the step."""

    h: Key | None
    S: Key
    kv: Key | None


def stage_ops(program: Program, stages: Sequence[StageBlocks]) -> tuple[dict[int, StageOp], ...]:
    """The items of every stage by op, in program order."""
    ops = {i: op for i, op in enumerate(program.ops) if isinstance(op, Pass)}
    parts: tuple[Layers, ...] = ("prelude", "loop", "coda")
    paths = {part: _path(part, stages) for part in parts}
    reads = _reads(ops, paths)
    cuts = _cuts(program)
    readers: dict[tuple[str, Key], list[Key]] = defaultdict(list)
    for key, r in reads.items():
        for kind, source in (("h", r.h), ("S", r.S), ("kv", r.kv)):
            if source is not None and source[0] >= 0:
                readers[kind, source].append(key)
    backward: dict[Key, bool] = {}
    for i, s in reversed(reads):
        loss = ops[i].loss and s == paths[ops[i].layers][-1]
        reached = (cuts[i] == cuts[r[0]] and backward[r] for kind in ("h", "S", "kv") for r in readers[kind, (i, s)])
        backward[i, s] = ops[i].grad and (loss or any(reached))
    carries = {
        (kind, source, key)
        for (kind, source), keys in readers.items()
        for key in keys
        if backward[source] and backward[key] and cuts[source[0]] == cuts[key[0]]
    }
    last = _last_of_window(program)
    found: tuple[dict[int, StageOp], ...] = tuple({} for _ in stages)
    for (i, s), r in reads.items():
        found[s][i] = _stage_op(i, s, ops, stages, paths, r, readers, carries, backward[i, s], last.get(i))
    return found


def _path(part: Layers, stages: Sequence[StageBlocks]) -> list[int]:
    """Stages that a pass over `part` runs through."""
    spans = (stage.part(part) for stage in stages)
    return [s for s, (first, stop) in enumerate(spans) if first < stop]


def _reads(ops: dict[int, Pass], paths: dict[Layers, list[int]]) -> dict[Key, _Reads]:
    """Every item's inputs, in program order and along the stages."""
    found: dict[Key, _Reads] = {}
    state: dict[Layers, int] = {}
    cache: dict[Layers, int] = {}
    above = exit_ = -1
    for i, op in ops.items():
        path = paths[op.layers]
        if op.reads == "tokens":
            h = None
        elif op.reads == "above":
            h = (above, paths["prelude"][-1])
        else:
            h = (exit_, paths["loop"][-1])
        for s in path:
            kv = (cache[op.layers], s) if op.kv_read else None
            found[i, s] = _Reads(h, (state.get(op.layers, -1), s), kv)
            h = (i, s)
        state[op.layers] = i
        if op.kv_write:
            cache[op.layers] = i
        if op.layers == "prelude":
            above = i
        elif op.layers == "loop":
            exit_ = i
    return found


def _cuts(program: Program) -> dict[int, int]:
    """How often the graph was cut before or on entering each op: an edge between ops of different counts is cut."""
    count, found = 0, {}
    for i, op in enumerate(program.ops):
        count += op.detach
        found[i] = count
    return found


def _last_of_window(program: Program) -> dict[int, Boundary]:
    """For the last op over each range of blocks of a window, the boundary after that window."""
    found: dict[int, Boundary] = {}
    newest: dict[Layers, int] = {}
    for i, op in enumerate(program.ops):
        if isinstance(op, Pass):
            newest[op.layers] = i
        else:
            found |= dict.fromkeys(newest.values(), op)
            newest = {}
    return found


def _stage_op(
    i: int, s: int, ops: dict[int, Pass], stages: Sequence[StageBlocks], paths: dict[Layers, list[int]], reads: _Reads,
    readers: dict[tuple[str, Key], list[Key]], carries: set[tuple[str, Key, Key]], backward: bool,
    boundary: Boundary | None,
) -> StageOp:  # fmt: skip
    op, key = ops[i], (i, s)

    def source(kind: str, at: Key) -> Producer:
        return Producer(*at, grad=(kind, at, key) in carries)

    def graded(kind: str) -> list[Key]:
        return [r for r in readers[kind, key] if (kind, key, r) in carries]

    loss = op.loss and s == paths[op.layers][-1]
    remote = reads.h is not None and reads.h[1] != s
    sisters = [r for r in readers["h", reads.h] if r[1] == s] if remote and reads.h else []
    back = [r for r in sisters if reads.h and ("h", reads.h, r) in carries]
    away = [r for r in readers["h", key] if r[1] != s]
    # The way round is the critical one: it goes before what only the coda waits for.
    away.sort(key=lambda r: ops[r[0]].layers == "coda" and op.layers == "loop")
    return StageOp(
        op=i, blocks=stages[s].part(op.layers),
        h=None if reads.h is None else source("h", reads.h), S=source("S", reads.S),
        kv=None if reads.kv is None else source("kv", reads.kv),
        receives=sisters[:1] == [key], returns=back[:1] == [key],
        makes_h=bool(readers["h", key]) or loss, makes_kv=op.kv_write, sends=tuple(dict.fromkeys(r[1] for r in away)),
        normed=any(r[0] != i and ops[r[0]].reads == "normed" for r in away), loss=loss,
        boundary=boundary, backward=backward,
        dh=(loss and op.grad) or any(r[1] == s for r in graded("h")),
        returned=tuple(dict.fromkeys(r[1] for r in graded("h") if r[1] != s)),
        dS=bool(graded("S")), dkv=bool(graded("kv")),
    )  # fmt: skip
