"""Schedules that `build_schedule` returns are valid, and `check` reports every kind of damage to one."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.program import Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, check, checked, outputs, stage_blocks
from tests.schedule.random_schedules import ScheduleCase, schedule_cases


def circular(stages=2, policy="pass", group=None, tied=False):
    sleep = Sleep(window=4, passes=3)
    layout = [Window(0, 4, False), Window(4, 8, False), Window(8, 12, True)]
    cuts = tuple(range(1, stages))
    return build_schedule(
        compile(sleep, layout, 4), stage_blocks(sleep, 4, cuts), group or stages, RECOMPUTE_POLICIES[policy], tied
    )


def edited(schedule, s, half, edit):
    """The same schedule with one half of one stage's actions edited."""
    stages = list(schedule.stages)
    actions = list(getattr(stages[s], half))
    edit(actions)
    stages[s] = replace(stages[s], **{half: tuple(actions)})
    return replace(schedule, stages=tuple(stages))


def index_of(actions, kind, nth=0):
    return [n for n, a in enumerate(actions) if a.kind == kind][nth]


@settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule_cases())
def test_every_random_schedule_passes_the_check(case: ScheduleCase):
    assert check(case.build_schedule()) == []


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule_cases(max_windows=6, max_depth=10, max_stages=8))
def test_every_random_schedule_on_many_stages_passes_the_check(case: ScheduleCase):
    assert check(case.build_schedule()) == []


@pytest.mark.parametrize("policy", RECOMPUTE_POLICIES)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_one_communicator_per_edge_does_not_deadlock_with_or_without_a_tied_matrix(stages, policy):
    assert check(circular(stages, policy)) == []
    assert check(circular(stages, policy, stages + 2, tied=True)) == []


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_one_communicator_per_direction_deadlocks(stages):
    schedule = circular(stages)
    shared = replace(schedule, channels={edge: edge.direction for edge in schedule.channels})
    problems = check(shared)
    assert "deadlock: stage 0 never begins FWD window 0 pass 2 micro 0" in problems
    assert any("communicator 'forward'" in p and "which its peer never matches" in p for p in problems)


def test_an_edge_without_a_communicator_is_reported():
    schedule = circular()
    _, *rest = schedule.channels
    problems = check(replace(schedule, channels={edge: schedule.channels[edge] for edge in rest}))
    assert any("its edge has no communicator" in p for p in problems)


def test_swapped_sends_are_reported_as_unexpected_messages():
    def swap(actions):
        a, b = index_of(actions, "SEND", 0), index_of(actions, "SEND", 1)
        actions[a], actions[b] = actions[b], actions[a]

    problems = check(edited(circular(), 1, "backward", swap))
    assert "stage 0 expects window 2 pass 1 micro 1 and receives window 2 pass 1 micro 0" in problems


def test_another_order_of_micro_batches_on_one_stage_is_reported():
    schedule = circular()
    flip = {0: 1, 1: 0}
    problems = check(edited(schedule, 1, "forward", lambda a: a.__setitem__(
        slice(None), [replace(x, micro=flip[x.micro], frees=tuple(v._replace(micro=flip[v.micro]) for v in x.frees))
                      for x in a])))  # fmt: skip
    assert any("expects window 0 pass 1 micro 1 and receives window 0 pass 1 micro 0" in p for p in problems)
    assert "stage 1: backward is not the reverse of forward" in problems


def test_a_missing_receive_is_reported():
    problems = check(edited(circular(), 1, "forward", lambda a: a.pop(index_of(a, "RECV"))))
    assert any(
        "FWD window 0 pass 1 micro 0: reads h of op 0 micro 0 from stage 0 before it is written" in p for p in problems
    )
    assert any(p.startswith("deadlock: stage 1 never begins") for p in problems)


def test_a_missing_send_is_reported():
    problems = check(edited(circular(), 0, "forward", lambda a: a.pop(index_of(a, "SEND", -1))))
    assert any(p.startswith("deadlock: stage 1 never begins FWD window 2 pass 1 micro 1") for p in problems)
    assert any(
        "stage 1 posts RECV 0->1 forward window 2 pass 1 micro 1, which its peer never matches" in p for p in problems
    )


def test_a_value_freed_before_its_last_read_is_reported():
    schedule = circular()
    actions = schedule.stages[0].backward
    late = next(n for n, a in enumerate(actions) if a.kind == "BWD" and any(v.kind == "S" for v in a.frees))
    value = next(v for v in actions[late].frees if v.kind == "S")

    def free_early(a):
        a[late] = replace(a[late], frees=tuple(v for v in a[late].frees if v != value))
        a[0] = replace(a[0], frees=(*a[0].frees, value))

    problems = check(edited(schedule, 0, "backward", free_early))
    assert any("BWD" in p and "reads S of op" in p and "freed it" in p for p in problems)


def test_a_value_that_is_never_freed_or_freed_twice_is_reported():
    schedule = circular(1)
    n = next(n for n, a in enumerate(schedule.stages[0].backward) if a.frees)
    kept = edited(schedule, 0, "backward", lambda a: a.__setitem__(n, replace(a[n], frees=())))
    assert any("stage 0 never frees" in p for p in check(kept))
    twice = edited(schedule, 0, "backward", lambda a: a.__setitem__(n + 1, replace(a[n + 1], frees=a[n].frees)))
    assert any("which the stage does not hold" in p for p in check(twice))


def test_a_freed_output_is_reported():
    schedule = circular(1)
    last = schedule.stages[0].backward[-1]
    state = next(v for v in outputs(0, schedule.stages[0], schedule.group) if v.kind == "S")
    lost = edited(schedule, 0, "backward", lambda a: a.__setitem__(-1, replace(last, frees=(*last.frees, state))))
    assert any("does not hold its output S of op 8" in p for p in check(lost))


def test_missing_repeated_and_misplaced_ops_are_reported():
    schedule = circular(1, "pass")
    assert any("BWD window 2 pass 1 micro 0 is missing" in p for p in check(
        edited(schedule, 0, "backward", lambda a: a.pop(index_of(a, "BWD")))))  # fmt: skip
    repeated = edited(schedule, 0, "forward", lambda a: a.insert(1, replace(a[0], frees=())))
    assert any("1 unexpected or repeated FWD window 0 pass 1 micro 0" in p for p in check(repeated))

    def swap(actions):
        actions[0], actions[1] = actions[1], actions[0]

    assert any("reads" in p and "before it is written" in p for p in check(edited(schedule, 0, "forward", swap)))


def test_an_op_on_a_stage_without_its_blocks_is_reported():
    schedule = circular(1)
    assert any("has no blocks for FWD" in p for p in check(
        edited(schedule, 0, "forward", lambda a: a.insert(0, replace(a[0], op=3, frees=())))))  # fmt: skip


def test_checked_returns_a_valid_schedule_and_raises_with_the_first_three_problems():
    schedule = circular(4)
    assert checked(schedule) is schedule
    shared = replace(schedule, channels={edge: edge.direction for edge in schedule.channels})
    problems = check(shared)
    assert len(problems) > 3
    with pytest.raises(ValueError) as error:
        checked(shared)
    assert str(error.value) == f"invalid schedule: {'; '.join(problems[:3])}; and {len(problems) - 3} more"
