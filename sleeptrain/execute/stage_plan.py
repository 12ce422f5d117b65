"""What a stage needs to know of a schedule beyond its actions; worked out once and used in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sleeptrain.program import Pass, Program, Sleep
from sleeptrain.schedule import (
    RecomputePolicy,
    Schedule,
    ScheduleAction,
    StageOp,
    StageSchedule,
    Value,
    build_schedule,
    outputs,
    stage_blocks,
)
from sleeptrain.schedule.memory import liveness
from sleeptrain.schedule.simulate import describe


@dataclass(frozen=True)
class StagePlan:
    """One stage of a schedule."""

    schedule: Schedule
    index: int
    """Which stage."""

    @property
    def stage(self) -> StageSchedule:
        """Its items and actions."""
        return self.schedule.stages[self.index]

    @cached_property
    def left(self) -> tuple[Value, ...]:
        """What is left when all is done: the state, in the order in which it was written."""
        return tuple(sorted(outputs(self.index, self.stage, self.schedule.group)))

    @cached_property
    def away(self) -> Mapping[int, Sequence[Value]]:
        """What waits for backward in the host's memory, by the action of the first half that is the last to touch it."""
        found: dict[int, list[Value]] = {}
        turn = len(self.stage.forward)
        if self.schedule.recompute.offload:
            for life in liveness(self.schedule, self.index):
                if life.made < turn <= life.freed and life.backward >= 0 and life.value not in self.left:
                    found.setdefault(max(life.forward, 0), []).append(life.value)
        return found

    @cached_property
    def _last_looped(self) -> bool:
        looped = [s for s, stage in enumerate(self.schedule.stages) if len(range(*stage.blocks.part("loop")))]
        return looped[-1] == self.index

    def exits(self, item: StageOp) -> bool:
        """Whether the looped range of a window that sleeps is left by this item."""
        op = self.schedule.program.ops[item.op]
        assert isinstance(op, Pass)
        return self._last_looped and op.layers == "loop" and op.of > 1

    def describe(self, action: ScheduleAction) -> str:
        """An action in words."""
        return describe(self.schedule.program, action)


@lru_cache(maxsize=64)
def single_stage_plan(program: Program, sleep: Sleep, depth: int, group: int, recompute: RecomputePolicy) -> StagePlan:
    """The plan of a process that holds all blocks."""
    return StagePlan(build_schedule(program, stage_blocks(sleep, depth), group, recompute), 0)
