"""The plan of one stage: facts derived once from its schedule and used in every step."""

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
    inputs,
    outputs,
    stage_blocks,
)
from sleeptrain.schedule.memory import liveness
from sleeptrain.schedule.simulate import describe


@dataclass(frozen=True)
class StagePlan:
    """One stage of a schedule, with derived facts."""

    schedule: Schedule
    index: int
    """The number of the stage."""

    @property
    def stage(self) -> StageSchedule:
        """The ops and actions of the stage."""
        return self.schedule.stages[self.index]

    @cached_property
    def initial_state(self) -> tuple[Value, ...]:
        """The values of the state with which every micro-batch begins."""
        return tuple(sorted(inputs(self.index, self.stage.ops, self.schedule.group)))

    @cached_property
    def final_state(self) -> tuple[Value, ...]:
        """The state values that remain after the last action, in the order in which they were written."""
        return tuple(sorted(outputs(self.index, self.stage, self.schedule.group)))

    @cached_property
    def saved_after(self) -> Mapping[int, Sequence[Value]]:
        """The values that are kept for backward, by the index of the forward action that is the last to use them."""
        by_action: dict[int, list[Value]] = {}
        forward_actions = len(self.stage.forward)
        for life in liveness(self.schedule, self.index):
            saved = life.made < forward_actions <= life.freed and life.backward >= 0
            if saved and life.value not in self.final_state:
                by_action.setdefault(max(life.forward, 0), []).append(life.value)
        return by_action

    @cached_property
    def _is_last_looped_stage(self) -> bool:
        looped = [s for s, stage in enumerate(self.schedule.stages) if len(range(*stage.blocks.part("loop")))]
        return looped[-1] == self.index

    def leaves_loop(self, stage_op: StageOp) -> bool:
        """Whether the op's output is that of the whole looped range, in a window with several passes."""
        op = self.schedule.program.ops[stage_op.op]
        assert isinstance(op, Pass)
        return self._is_last_looped_stage and op.layers == "loop" and op.of > 1

    def describe(self, action: ScheduleAction) -> str:
        """A description of an action for messages."""
        return describe(self.schedule.program, action)


@lru_cache(maxsize=64)
def single_stage_plan(program: Program, sleep: Sleep, depth: int, group: int, recompute: RecomputePolicy) -> StagePlan:
    """The plan of a process that holds all blocks; cached, because every step asks for it."""
    return StagePlan(build_schedule(program, stage_blocks(sleep, depth), group, recompute), 0)
