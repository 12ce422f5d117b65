"""What a stage needs to know of a timeline beyond its actions; worked out once and used in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

from sleeptrain.program import (
    Action,
    Item,
    Pass,
    Program,
    Retain,
    Sleep,
    Stage,
    Timeline,
    Value,
    check,
    place,
    results,
    slices,
)
from sleeptrain.program.memory import lives
from sleeptrain.program.simulate import say


@dataclass(frozen=True)
class Plan:
    """One stage of a timeline."""

    timeline: Timeline
    index: int
    """Which stage."""

    @property
    def stage(self) -> Stage:
        """Its items and actions."""
        return self.timeline.stages[self.index]

    @cached_property
    def left(self) -> tuple[Value, ...]:
        """What is left when all is done: the state, in the order in which it was written."""
        return tuple(sorted(results(self.index, self.stage, self.timeline.group)))

    @cached_property
    def away(self) -> Mapping[int, Sequence[Value]]:
        """What waits for backward in the host's memory, by the action of the first half that is the last to touch it."""
        found: dict[int, list[Value]] = {}
        turn = len(self.stage.forward)
        if self.timeline.retain.offload:
            for life in lives(self.timeline, self.index):
                if life.made < turn <= life.freed and life.backward >= 0 and life.value not in self.left:
                    found.setdefault(max(life.forward, 0), []).append(life.value)
        return found

    @cached_property
    def _last_looped(self) -> bool:
        looped = [s for s, stage in enumerate(self.timeline.stages) if len(range(*stage.slice.part("loop")))]
        return looped[-1] == self.index

    def exits(self, item: Item) -> bool:
        """Whether the looped range of a window that sleeps is left by this item."""
        op = self.timeline.program.ops[item.op]
        assert isinstance(op, Pass)
        return self._last_looped and op.layers == "loop" and op.of > 1

    def say(self, action: Action) -> str:
        """An action in words."""
        return say(self.timeline.program, action)


@lru_cache(maxsize=64)
def alone(program: Program, sleep: Sleep, depth: int, group: int, retain: Retain) -> Plan:
    """The plan of a process that holds all blocks."""
    return Plan(place(program, slices(sleep, depth), group, retain), 0)


def proven(timeline: Timeline) -> Timeline:
    """The timeline, if it can be carried out. Raises ValueError, naming what is wrong, for one that cannot."""
    if problems := check(timeline):
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"this timeline cannot be carried out: {shown}")
    return timeline


def key(timeline: Timeline) -> str:
    """A hash of all that stages must agree on."""
    stages = [(stage.slice, stage.forward, stage.backward) for stage in timeline.stages]
    everything = (timeline.program.key, timeline.group, timeline.retain, sorted(timeline.channels.items()), stages)
    return sha256(repr(everything).encode()).hexdigest()[:16]
