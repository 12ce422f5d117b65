"""Estimates of FLOPs, seconds, idle time and traffic against closed formulas and hand counts."""

from dataclasses import replace

import pytest

from sleeptrain.program import Evict, Gradient, Sleep, Window, compile
from sleeptrain.schedule import (
    RECOMPUTE_POLICIES,
    BlockFlops,
    Costs,
    Edge,
    ValueSizes,
    build_schedule,
    estimate,
    stage_blocks,
)
from tests.schedule.uniform import circular_schedule, uniform_costs


@pytest.mark.parametrize(
    "stages,windows,passes,extra", [(1, 2, 3, 0), (2, 2, 1, 0), (2, 3, 4, 1), (4, 2, 3, 0), (3, 5, 2, 2)]
)
def test_bubble_follows_the_formula_of_the_circular_pipeline(stages, windows, passes, extra):
    group = stages + extra
    found = estimate(circular_schedule(stages, windows, passes, group), uniform_costs(stages))
    slots = group * ((windows - 1) * passes + 1)
    assert found.bubble == pytest.approx((stages - 1) / (slots + stages - 1))
    slot_seconds = 4 * (1 + 2)
    assert [s.idle for s in found.stages] == pytest.approx([(stages - 1) * slot_seconds] * stages)
    assert found.seconds == pytest.approx((slots + stages - 1) * slot_seconds)


def test_four_stages_passes_windows_and_micro_batches_have_a_bubble_below_5_percent():
    sleep = Sleep(window=4, passes=4)
    layout = [Window(4 * i, 4 * i + 4, False) for i in range(4)]
    found = estimate(
        build_schedule(compile(sleep, layout, 4), stage_blocks(sleep, 4, (1, 2, 3)), 4, RECOMPUTE_POLICIES["none"]),
        uniform_costs(4),
    )
    assert found.bubble == pytest.approx(3 / 67) and found.bubble < 0.05
    assert all(s.backward == 0 for s in found.stages)


def test_two_more_micro_batches_than_stages_hide_message_latency():
    costs = uniform_costs(4, latency=0.15 * 4)
    exposed, hidden = (estimate(circular_schedule(4, 4, 4, group), costs).bubble for group in (4, 6))
    assert 0.1 < exposed < 0.2 and hidden < 0.06


def test_flops_seconds_and_traffic_equal_hand_counts():
    # Two blocks on two stages, 2 micro-batches; a sleeping window of 4 tokens and 2 passes, a predicted one of 2 tokens.
    sleep = Sleep(window=4, passes=2)
    program = compile(sleep, [Window(0, 4, False), Window(4, 6, True)], 2)
    costs = uniform_costs(2, head=10.0, bandwidth=100.0)
    found = estimate(build_schedule(program, stage_blocks(sleep, 2, (1,)), 2, RECOMPUTE_POLICIES["pass"]), costs)
    assert [s.forward for s in found.stages] == [2 * 10.0, 2 * (10.0 + 2 * 10)]
    assert [s.recompute for s in found.stages] == [2 * 10.0, 2 * (10.0 + 2 * 10)]
    assert [s.backward for s in found.stages] == [2 * 20.0, 2 * (20.0 + 4 * 10)]
    assert [s.busy for s in found.stages] == [s.forward + s.recompute + s.backward for s in found.stages]
    h, messages = 2.0, [(0, 1, "forward", 10), (1, 0, "forward", 4), (1, 0, "backward", 10), (0, 1, "backward", 4)]
    assert found.traffic == {Edge(a, b, d): 2 * tokens * h for a, b, d, tokens in messages}
    assert found.axes == {"pipe": 2 * 28 * h, "host": 0.0}


def test_policy_window_reruns_every_pass_but_the_last_of_a_window():
    depth, windows, passes = 2, 3, 4
    recompute = {
        p: estimate(circular_schedule(1, windows, passes, 1, p, depth=depth), uniform_costs(depth)).stages[0].recompute
        for p in RECOMPUTE_POLICIES
    }
    passes_run = (windows - 1) * passes + 1
    pass_flops = 4 * depth
    assert recompute == {"none": 0, "selective": 0, "block": passes_run * pass_flops, "pass": passes_run * pass_flops,
                     "window": passes_run * pass_flops + (windows - 1) * (passes - 1) * pass_flops}  # fmt: skip


def test_attention_flops_count_the_keys_of_every_query():
    sleep = Sleep(window=4, evict=Evict("sliding"))
    program = compile(sleep, [Window(0, 4, True), Window(4, 8, True)], 1)
    sizes = ValueSizes(1.0, (0.0,), (0.0,), (1.0,), (0.0,))
    found = estimate(
        build_schedule(program, stage_blocks(sleep, 1), 1, RECOMPUTE_POLICIES["none"]),
        Costs(sizes, (BlockFlops(0.0, 1.0),)),
    )
    assert found.stages[0].forward == (1 + 2 + 3 + 4) + 4 * 4


def test_truncated_gradients_cost_fewer_recompute_and_backward_flops():
    sleep = Sleep(window=4, passes=4, gradient=Gradient(passes=1))
    layout = [Window(0, 4, False), Window(4, 8, True)]
    stage = estimate(
        build_schedule(compile(sleep, layout, 2), stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["pass"]),
        uniform_costs(2),
    ).stages[0]
    assert (stage.forward, stage.recompute, stage.backward) == (5 * 8, 2 * 8, 2 * 2 * 8)


def test_an_invalid_schedule_raises_value_error():
    schedule = circular_schedule(2, 2, 2, 2)
    with pytest.raises(ValueError, match="cannot estimate an invalid schedule: deadlock"):
        estimate(replace(schedule, channels={e: e.direction for e in schedule.channels}), uniform_costs(2))
