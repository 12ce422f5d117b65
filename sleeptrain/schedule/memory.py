"""Memory of a stage over a schedule: lifetimes of its values, and bytes by component at and between actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sleeptrain.schedule.backward import BackwardBlocks
from sleeptrain.schedule.peak import Moment, StageMoments, Temporaries, largest
from sleeptrain.schedule.reads_writes import inputs, outputs, reads_writes
from sleeptrain.schedule.schedule import Schedule, Value
from sleeptrain.schedule.value_bytes import COMPONENTS, BytesByComponent, ValueBytes, ValueSizes

AUTOGRAD_GRAPHS = ("graph", "head")
"""Kinds of values that are never offloaded: autograd owns their tensors."""


@dataclass(frozen=True)
class MemoryProfile:
    """Bytes that a stage holds over one group of micro-batches."""

    kept: BytesByComponent
    """On the device, between forward and backward."""
    peak: BytesByComponent
    """On the device, when the sum with `moment` is largest."""
    moment: Moment
    """Gradients of weights and temporaries at that time; zero unless temporaries are given."""
    host: float
    """Offloaded to host memory, between forward and backward."""
    offload_traffic: float
    """Bytes copied to host memory and back."""


class Lifetime(NamedTuple):
    """A value with the indices of the actions that first write it, use it and free it."""

    value: Value
    made: int
    freed: int
    forward: int
    """Last action of the forward half that uses it, or -1."""
    backward: int
    """First action of the backward half that uses it, or -1."""


def memory_profile(
    schedule: Schedule, stage: int, sizes: ValueSizes, temporaries: Temporaries | None = None,
    reached: Mapping[int, BackwardBlocks] | None = None,
) -> MemoryProfile:  # fmt: skip
    """Bytes that one stage holds. `reached`: where autograd runs the passes, the blocks of every op that a gradient reaches. It keeps
    nothing of the others, and releases what it keeps block by block.

    A value that is held across the start of backward and used there counts as offloaded from its last use in forward to
    its first use in backward, if the policy offloads and the value is neither an output nor an autograd graph.
    """
    stage_schedule = schedule.stages[stage]
    backward_start = len(stage_schedule.forward)
    last_action = backward_start + len(stage_schedule.backward) - 1
    table = ValueBytes(schedule, stage, sizes, reached)
    offload = schedule.recompute.offload
    final = outputs(stage, stage_schedule, schedule.group) if offload else set()
    deltas: list[list[tuple[str, float]]] = [[] for _ in range(last_action + 2)]
    kept, host = dict.fromkeys(COMPONENTS, 0.0), 0.0
    for life in liveness(schedule, stage):
        saved = life.made < backward_start <= life.freed
        offloaded = saved and offload and life.backward >= 0 and life.value not in final
        offloaded = offloaded and life.value.kind not in AUTOGRAD_GRAPHS
        on_device = [(life.made, life.forward), (life.backward, life.freed)] if offloaded else [(life.made, life.freed)]
        for component, size in table.bytes(life.value):
            host += size if offloaded else 0
            kept[component] += size if saved and not offloaded else 0
            for first, last in on_device:
                deltas[max(first, 0)].append((component, size))
                deltas[min(last, last_action) + 1].append((component, -size))
    moments = list(_moments(schedule, stage, table, temporaries))
    peak, moment = largest(deltas, moments, "body")
    return MemoryProfile(kept, dict.fromkeys(COMPONENTS, 0.0) | dict(peak), moment, host, 2 * host)


def _moments(
    schedule: Schedule, s: int, table: ValueBytes, temporaries: Temporaries | None
) -> Iterator[Iterable[Moment]]:
    """The moments of all actions of a stage, and one after the last action."""
    stage = schedule.stages[s]
    made = None if temporaries is None else StageMoments(temporaries)
    halves = ((False, stage.forward), (True, stage.backward))
    for backward, action in ((half, action) for half, actions in halves for action in actions):
        if made is None:
            yield (Moment(),)
            continue
        stage_op = stage.ops.get(action.op) if action.edge is None else None
        blocks = range(*stage_op.blocks) if stage_op else range(0)
        embeds = stage_op is not None and stage_op.h is None
        graphs = table.released(action.kind, stage_op) if backward else ()
        absent = table.recomputed_later(stage_op) if backward and action.kind == "LOSS" else 0.0
        yield list(made.of(action, backward, blocks, embeds, graphs, absent))
    yield ()


def liveness(schedule: Schedule, s: int) -> Iterator[Lifetime]:
    """Lifetime of every value that stage `s` holds, in the order in which values are freed."""
    stage = schedule.stages[s]
    backward_start, actions = len(stage.forward), (*stage.forward, *stage.backward)
    made_at = dict.fromkeys(inputs(s, stage.ops, schedule.group), -1)
    last_forward_use: dict[Value, int] = {}
    first_backward_use: dict[Value, int] = {}
    for n, action in enumerate(actions):
        reads, writes = reads_writes(s, stage.ops.get(action.op), action, n >= backward_start, schedule.recompute)
        for value in (*reads, *writes):
            if n < backward_start:
                last_forward_use[value] = n
            else:
                first_backward_use.setdefault(value, n)
        for value in writes:
            made_at.setdefault(value, n)
        for value in action.frees:
            uses = last_forward_use.pop(value, -1), first_backward_use.pop(value, -1)
            yield Lifetime(value, made_at.pop(value, n), n, *uses)
    for value, n in made_at.items():
        uses = last_forward_use.get(value, -1), first_backward_use.get(value, -1)
        yield Lifetime(value, n, len(actions), *uses)
