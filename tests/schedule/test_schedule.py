"""Stages of a stack, and the key that ranks compare before they run a schedule."""

from dataclasses import replace

import pytest

from sleeptrain.program import Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, stage_blocks


def schedule(policy="pass", group=2, passes=2, cuts=(2,)):
    sleep = Sleep(window=4, passes=passes)
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], 4)
    return build_schedule(program, stage_blocks(sleep, 4, cuts), group, RECOMPUTE_POLICIES[policy])


def test_cuts_that_leave_a_stage_without_a_block_raise_value_error():
    with pytest.raises(ValueError, match="leave a stage of a stack of 4 blocks without a block"):
        stage_blocks(Sleep(), 4, (2, 2))


def test_equal_schedules_have_equal_keys():
    assert schedule().key == schedule().key


def test_every_part_of_a_schedule_that_ranks_must_agree_on_changes_its_key():
    base = schedule()
    first, last = base.stages
    actions = list(first.forward)
    actions[0], actions[1] = actions[1], actions[0]
    others = [
        schedule(policy="window"),
        schedule(group=3),
        schedule(passes=3),
        schedule(cuts=(1,)),
        replace(base, recompute=replace(base.recompute, offload=True)),
        replace(base, channels={edge: edge.direction for edge in base.channels}),
        replace(base, stages=(replace(first, forward=tuple(actions)), last)),
    ]
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1
