"""Places a program on stages: every stage's actions over one group of micro-batches, in order.

The circular order: for window, for pass, for micro-batch. A pass that leaves the last looped stage goes back to the
first; only features cross stages, the state stays with its blocks. Backward is the exact reverse, with edges reversed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sleeptrain.program.flow import items_of
from sleeptrain.program.program import Pass, Program
from sleeptrain.program.timeline import Action, Edge, Item, Retain, Slice, Stage, Timeline, Value
from sleeptrain.program.values import results, touches

Turn = tuple[Item, ...]
"""What a stage runs for one micro-batch in one pass over one window: prelude, looped and coda blocks it owns."""


@dataclass(frozen=True)
class _Step:
    """A turn of one micro-batch: receives to post one turn ahead, and the work itself."""

    receives: tuple[Action, ...]
    work: tuple[Action, ...]


def place(program: Program, stages: Sequence[Slice], group: int, retain: Retain, tied: bool = False) -> Timeline:
    """The timeline of one group of `group` micro-batches on `stages`; one stage is the ordinary trainer.

    `tied`: embedding and head are one matrix, whose gradient the first and the last stage sum at the end.
    Raises ValueError for groups smaller than the number of stages: stages would wait for one another in every pass.
    """
    if group < max(1, len(stages)):
        raise ValueError(
            f"a group of {group} micro-batches cannot keep {len(stages)} stages busy: "
            f"a pass needs at least as many micro-batches as stages, so use a group of {max(1, len(stages))} or more"
        )
    placed = []
    for s, items in enumerate(items_of(program, stages)):
        turns = _turns(program, items)
        forward = _one_ahead([_forward(s, turn, m) for turn in turns for m in range(group)])
        steps = list(_backward_steps(program, s, items, turns, group, retain))
        backward = _one_ahead(steps)
        if tied and len(stages) > 1 and s in (0, len(stages) - 1):
            backward.append(Action("REDUCE", -1, -1, Edge(0, len(stages) - 1, "reduce")))
        stage = Stage(stages[s], items, tuple(forward), tuple(backward))
        placed.append(_with_frees(s, stage, group, retain))
    return Timeline(program, tuple(placed), group, retain, own_channels(placed))


def own_channels(stages: Sequence[Stage]) -> dict[Edge, str]:
    """A communicator for every directed edge in use."""
    edges = {a.edge for stage in stages for a in (*stage.forward, *stage.backward) if a.edge is not None}
    return {edge: f"{edge.direction} {edge.src}-{edge.dst}" for edge in sorted(edges)}


def _turns(program: Program, items: Mapping[int, Item]) -> list[Turn]:
    """A stage's items by window and pass."""
    turns: dict[tuple[int, int], list[Item]] = {}
    for i, item in items.items():
        op = program.ops[i]
        assert isinstance(op, Pass)
        turns.setdefault((op.window, op.index), []).append(item)
    return [tuple(turn) for turn in turns.values()]


def _one_ahead(steps: Sequence[_Step]) -> list[Action]:
    """All steps in order, each preceded by the receives of the one after it, so that transfers hide behind work."""
    actions = list(steps[0].receives) if steps else []
    for k, step in enumerate(steps):
        if k + 1 < len(steps):
            actions += steps[k + 1].receives
        actions += step.work
    return actions


def _forward(s: int, turn: Turn, micro: int) -> _Step:
    receives, work, losses = [], [], []
    for item in turn:
        if item.receives and item.h is not None:
            receives.append(Action("RECV", item.h.op, micro, Edge(item.h.stage, s, "forward")))
        work.append(Action("FWD", item.op, micro))
        work += [Action("SEND", item.op, micro, Edge(s, to, "forward")) for to in item.sends]
        losses += [Action("LOSS", item.op, micro)] if item.loss else []
    return _Step(tuple(receives), (*work, *losses))


def _backward_steps(
    program: Program, s: int, items: Mapping[int, Item], turns: Sequence[Turn], group: int, retain: Retain
) -> Iterator[_Step]:
    """Turns in reverse. The first one of a window restores what the window's passes read, where that was not kept."""
    restored: set[tuple[int, int]] = set()
    for turn in reversed(turns):
        if not any(item.backward for item in turn):
            continue
        window = _window(program, turn[0])
        again = _reruns(program, s, items, window, retain)
        for m in reversed(range(group)):
            step = _backward(s, turn, m, retain)
            if (window, m) not in restored:
                restored.add((window, m))
                step = replace(step, work=(*(Action("FWD", i, m) for i in again), *step.work))
            yield step


def _backward(s: int, turn: Turn, micro: int, retain: Retain) -> _Step:
    receives, work = [], []
    for item in reversed(turn):
        if not item.backward:
            continue
        receives += [Action("RECV", item.op, micro, Edge(back, s, "backward")) for back in item.returned]
        if retain.body != "all":
            work.append(Action("RECOMPUTE", item.op, micro))
        if item.loss:
            work.append(Action("LOSS", item.op, micro))
        work.append(Action("BWD", item.op, micro))
        if item.returns and item.h is not None:
            work.append(Action("SEND", item.h.op, micro, Edge(s, item.h.stage, "backward")))
    return _Step(tuple(receives), tuple(work))


def _window(program: Program, item: Item) -> int:
    return program.ops[item.op].window


def _reruns(program: Program, s: int, items: Mapping[int, Item], window: int, retain: Retain) -> list[int]:
    """Ops of a window that run again, without graphs, before its backward: they make what its passes read.

    What came from another stage, or from work that has no backward, was kept.
    """
    found: set[int] = set()
    wanted = [item for i, item in items.items() if item.backward and _window(program, item) == window]
    while wanted:
        item = wanted.pop()
        for source, grain in ((item.h, retain.h), (item.S, retain.S), (item.kv, retain.S)):
            if source is None or grain == "pass" or source.stage != s or source.op < 0 or source.op in found:
                continue
            maker = items[source.op]
            if maker.backward and _window(program, maker) == window:
                found.add(source.op)
                wanted.append(maker)
    return sorted(found)


def _with_frees(s: int, stage: Stage, group: int, retain: Retain) -> Stage:
    """Every value is freed by the last action that touches it before it is made anew, or at all; results never are."""
    last: dict[Value, int] = {Value("S", -1, m, s): 0 for m in range(group)}
    frees: dict[int, list[Value]] = {}
    summed, kept = ("dh", "dS", "dkv"), results(s, stage, group)
    n, actions = 0, (*stage.forward, *stage.backward)
    for n, action in enumerate(actions):
        read, made = touches(s, stage.items.get(action.op), action, n >= len(stage.forward), retain)
        for value in made:
            if value in last and value.kind not in summed and value not in kept:
                frees.setdefault(last[value], []).append(value)
            last[value] = n
        for value in read:
            last[value] = n
    for value, n in last.items():
        if value not in kept:
            frees.setdefault(n, []).append(value)
    done = [replace(a, frees=tuple(frees[n])) if n in frees else a for n, a in enumerate(actions)]
    return replace(stage, forward=tuple(done[: len(stage.forward)]), backward=tuple(done[len(stage.forward) :]))
