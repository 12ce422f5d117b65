"""Pipeline schedules, from a program to every stage's actions: build, check, estimate, draw. Pure Python, no torch."""

from sleeptrain.schedule.backward import BlockFlops, backward_blocks, backward_flops
from sleeptrain.schedule.balance import Balance, balance
from sleeptrain.schedule.build import build_schedule, channel_per_edge, sample_schedule
from sleeptrain.schedule.check import check, checked
from sleeptrain.schedule.dataflow import stage_ops
from sleeptrain.schedule.draw import Picture, draw
from sleeptrain.schedule.estimate import Costs, Estimate, StageEstimate, estimate
from sleeptrain.schedule.peak import Temporaries
from sleeptrain.schedule.reads_writes import inputs, outputs, reads_writes
from sleeptrain.schedule.schedule import (
    RECOMPUTE_POLICIES,
    Body,
    Edge,
    Producer,
    RecomputePolicy,
    Schedule,
    ScheduleAction,
    StageBlocks,
    StageOp,
    StageSchedule,
    Value,
    stage_blocks,
)
from sleeptrain.schedule.value_bytes import ValueSizes

__all__ = [
    "RECOMPUTE_POLICIES", "Balance", "BlockFlops", "Body", "Costs", "Edge", "Estimate", "Picture", "Producer", "RecomputePolicy",
    "Schedule", "ScheduleAction", "StageBlocks", "StageEstimate", "StageOp", "StageSchedule", "Temporaries", "Value", "ValueSizes",
    "backward_blocks", "backward_flops", "balance",
    "build_schedule", "channel_per_edge", "check", "checked", "draw", "estimate", "inputs", "outputs", "reads_writes", "sample_schedule",
    "stage_blocks", "stage_ops",
]  # fmt: skip
