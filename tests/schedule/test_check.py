"""What is wrong with a schedule is found and named; what `place` makes is right."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.program import Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, check, outputs, stage_blocks
from tests.schedule.drawn import Case, cases


def circular(stages=2, policy="pass", group=None, tied=False):
    sleep = Sleep(window=4, passes=3)
    layout = [Window(0, 4, False), Window(4, 8, False), Window(8, 12, True)]
    cuts = tuple(range(1, stages))
    return build_schedule(
        compile(sleep, layout, 4), stage_blocks(sleep, 4, cuts), group or stages, RECOMPUTE_POLICIES[policy], tied
    )


def change(schedule, s, half, edit):
    """The same schedule with one half of one stage's actions edited."""
    stages = list(schedule.stages)
    actions = list(getattr(stages[s], half))
    edit(actions)
    stages[s] = replace(stages[s], **{half: tuple(actions)})
    return replace(schedule, stages=tuple(stages))


def find(actions, kind, nth=0):
    return [n for n, a in enumerate(actions) if a.kind == kind][nth]


@settings(max_examples=800, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_whatever_is_placed_is_right(case: Case):
    assert check(case.build_schedule()) == []


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(max_windows=6, max_depth=10, max_stages=8))
def test_whatever_is_placed_is_right_on_more_stages(case: Case):
    assert check(case.build_schedule()) == []


@pytest.mark.parametrize("policy", RECOMPUTE_POLICIES)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_communicator_per_edge_runs_and_a_shared_matrix_does_no_harm(stages, policy):
    assert check(circular(stages, policy)) == []
    assert check(circular(stages, policy, stages + 2, tied=True)) == []


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_one_communicator_per_direction_is_a_deadlock(stages):
    schedule = circular(stages)
    shared = replace(schedule, channels={edge: edge.direction for edge in schedule.channels})
    problems = check(shared)
    assert "deadlock: stage 0 waits for ever before FWD window 0 pass 2 micro 0" in problems
    assert any("communicator 'forward'" in p and "finds no partner" in p for p in problems)


def test_an_edge_without_a_communicator_is_named():
    schedule = circular()
    _, *rest = schedule.channels
    problems = check(replace(schedule, channels={edge: schedule.channels[edge] for edge in rest}))
    assert any("no communicator carries its edge" in p for p in problems)


def test_swapped_sends_arrive_as_the_wrong_value():
    def swap(actions):
        a, b = find(actions, "SEND", 0), find(actions, "SEND", 1)
        actions[a], actions[b] = actions[b], actions[a]

    problems = check(change(circular(), 1, "backward", swap))
    assert "stage 0 asked for window 2 pass 1 micro 1 and got window 2 pass 1 micro 0" in problems


def test_micro_batches_in_another_order_on_one_stage():
    schedule = circular()
    flip = {0: 1, 1: 0}
    problems = check(change(schedule, 1, "forward", lambda a: a.__setitem__(
        slice(None), [replace(x, micro=flip[x.micro], frees=tuple(v._replace(micro=flip[v.micro]) for v in x.frees))
                      for x in a])))  # fmt: skip
    assert any("asked for window 0 pass 1 micro 1 and got window 0 pass 1 micro 0" in p for p in problems)
    assert "stage 1: backward is not the reverse of forward" in problems


def test_a_receive_left_out():
    problems = check(change(circular(), 1, "forward", lambda a: a.pop(find(a, "RECV"))))
    assert any(
        "FWD window 0 pass 1 micro 0: reads h of op 0 micro 0 from stage 0 before it is made" in p for p in problems
    )
    assert any(p.startswith("deadlock: stage 1 waits for ever") for p in problems)


def test_a_send_left_out():
    problems = check(change(circular(), 0, "forward", lambda a: a.pop(find(a, "SEND", -1))))
    assert any(p.startswith("deadlock: stage 1 waits for ever before FWD window 2 pass 1 micro 1") for p in problems)
    assert any("RECV 0->1 forward window 2 pass 1 micro 1 of stage 1 finds no partner" in p for p in problems)


def test_freed_too_early():
    schedule = circular()
    actions = schedule.stages[0].backward
    late = next(n for n, a in enumerate(actions) if a.kind == "BWD" and any(v.kind == "S" for v in a.frees))
    value = next(v for v in actions[late].frees if v.kind == "S")

    def early(a):
        a[late] = replace(a[late], frees=tuple(v for v in a[late].frees if v != value))
        a[0] = replace(a[0], frees=(*a[0].frees, value))

    problems = check(change(schedule, 0, "backward", early))
    assert any("BWD" in p and "reads S of op" in p and "freed it" in p for p in problems)


def test_never_freed_and_freed_twice():
    schedule = circular(1)
    n = next(n for n, a in enumerate(schedule.stages[0].backward) if a.frees)
    kept = change(schedule, 0, "backward", lambda a: a.__setitem__(n, replace(a[n], frees=())))
    assert any("stage 0 never frees" in p for p in check(kept))
    twice = change(schedule, 0, "backward", lambda a: a.__setitem__(n + 1, replace(a[n + 1], frees=a[n].frees)))
    assert any("which it does not hold" in p for p in check(twice))


def test_a_result_thrown_away():
    schedule = circular(1)
    last = schedule.stages[0].backward[-1]
    state = next(v for v in [*_made(schedule)] if v.kind == "S")
    lost = change(schedule, 0, "backward", lambda a: a.__setitem__(-1, replace(last, frees=(*last.frees, state))))
    assert any("is left without S of op 8" in p for p in check(lost))


def _made(schedule):
    return outputs(0, schedule.stages[0], schedule.group)


def test_work_left_out_repeated_or_out_of_order():
    schedule = circular(1, "pass")
    assert any("BWD window 2 pass 1 micro 0 is missing" in p for p in check(
        change(schedule, 0, "backward", lambda a: a.pop(find(a, "BWD")))))  # fmt: skip
    again = change(schedule, 0, "forward", lambda a: a.insert(1, replace(a[0], frees=())))
    assert any("FWD window 0 pass 1 micro 0 is 1 times too often" in p for p in check(again))

    def swap(actions):
        actions[0], actions[1] = actions[1], actions[0]

    assert any("reads" in p and "before it is made" in p for p in check(change(schedule, 0, "forward", swap)))


def test_an_op_that_a_stage_has_no_blocks_for():
    schedule = circular(1)
    assert any("has no blocks for FWD" in p for p in check(
        change(schedule, 0, "forward", lambda a: a.insert(0, replace(a[0], op=3, frees=())))))  # fmt: skip
