"""Memory profiles of schedules against hand counts, and their order over recompute policies."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.program import Evict, Sleep, Window, compile
from sleeptrain.schedule import (
    RECOMPUTE_POLICIES,
    BlockFlops,
    Costs,
    RecomputePolicy,
    Temporaries,
    ValueSizes,
    build_schedule,
    estimate,
    stage_blocks,
)
from sleeptrain.schedule.peak import Moment
from tests.schedule.random_schedules import ScheduleCase, schedule_cases
from tests.schedule.uniform import circular_schedule, uniform_costs


def test_kept_bytes_equal_hand_counts():
    depth, group, passes = 4, 2, 3
    sleep = Sleep(window=4, passes=passes)
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], depth)
    first, last = {}, {}
    for policy in RECOMPUTE_POLICIES:
        stages = estimate(
            build_schedule(program, stage_blocks(sleep, depth, (2,)), group, RECOMPUTE_POLICIES[policy]),
            uniform_costs(depth),
        ).stages
        first[policy], last[policy] = stages[0].kept, stages[1].kept
    token, fast, conv = 2.0 * 4, 2 * 64.0, 2 * 3.0
    # Stage 0 embeds in pass 1 of both windows and receives in passes 2 and 3. It keeps four input states and one output.
    assert first["pass"] == {"h": 0, "received h": group * 2 * token, "S": group * 5 * fast, "conv": group * 5 * conv,
                             "kv": 0, "body": 0, "gradients": 0}  # fmt: skip
    assert last["pass"]["received h"] == group * 4 * token
    # With policy window: the initial state, the state after the first window, and the output.
    assert first["window"]["S"] == group * 3 * fast and first["window"]["received h"] == first["pass"]["received h"]
    assert first["block"]["body"] == group * 4 * 1 * token
    # Graphs hold the input features of every block after the first, those of the first where a pass embeds tokens, and their output.
    assert first["none"]["body"] == group * (4 * 2 * 40.0 * 4 + (4 + 2 + 4) * token)
    assert last["none"]["body"] == group * (4 * 2 * 40.0 * 4 + 50.0 * 4 + (4 + 4) * token)


def test_offload_moves_saved_activations_to_the_host():
    on_device = estimate(circular_schedule(2, 3, 4, 2, "pass", depth=4), uniform_costs(4))
    offloaded = estimate(
        circular_schedule(2, 3, 4, 2, depth=4, recompute=RecomputePolicy(offload=True)), uniform_costs(4)
    )
    assert offloaded.axes["host"] == 2 * sum(s.host for s in offloaded.stages) > 0 and on_device.axes["host"] == 0
    for off, on in zip(offloaded.stages, on_device.stages, strict=True):
        assert sum(off.peak.values()) < sum(on.peak.values())
        assert off.host + sum(off.kept.values()) == pytest.approx(sum(on.kept.values()))


def test_sliding_eviction_counts_the_attention_cache_of_every_row():
    sleep = Sleep(window=4, passes=2, evict=Evict("sliding"))
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], 2)
    sizes = ValueSizes(2.0, (8.0, 8.0), (1.0, 1.0), (5.0, 0.0), (9.0, 9.0), rows=3)
    found = estimate(
        build_schedule(program, stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["pass"]),
        Costs(sizes, (BlockFlops(1.0),) * 2),
    )
    assert found.stages[0].kept["kv"] == 3 * 3 * 5.0


def test_graphs_of_attention_blocks_include_the_cached_tokens_that_they_read():
    sleep = Sleep(window=4, evict=Evict("sliding"))
    program = compile(sleep, [Window(4 * i, 4 * i + 4, True) for i in range(3)], 2)
    plain = ValueSizes(2.0, (8.0, 8.0), (1.0, 1.0), (5.0, 0.0), (9.0, 9.0))
    costs = [Costs(sizes, (BlockFlops(1.0),) * 2) for sizes in (plain, replace(plain, cached=(7.0, 0.0)))]
    without, with_cache = (
        estimate(build_schedule(program, stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["none"]), c).stages[0].kept
        for c in costs
    )
    assert (
        with_cache["body"] - without["body"] == 7.0 * 3 + 7.0 * 3
    )  # three cached tokens in the second and third window


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_peak_memory_increases_from_policy_window_to_none(stages):
    peaks = [
        max(
            sum(s.peak.values())
            for s in estimate(circular_schedule(stages, 4, 4, max(2, stages), p, depth=8), uniform_costs(8)).stages
        )
        for p in ("window", "pass", "block", "none")
    ]
    assert peaks == sorted(peaks) and len(set(peaks)) == 4


def test_building_twice_gives_equal_schedules_whose_profiles_have_the_same_components():
    schedule = circular_schedule(2, 3, 2, 2, "pass", depth=4)
    assert schedule == circular_schedule(2, 3, 2, 2, "pass", depth=4)
    for s, stage in enumerate(schedule.stages):
        profile = estimate(schedule, uniform_costs(4)).stages[s]
        assert set(profile.peak) == set(profile.kept) and stage.backward[-1].frees


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule_cases())
def test_kept_bytes_of_every_random_schedule_do_not_decrease_from_policy_window_to_none(case: ScheduleCase):
    costs = uniform_costs(case.depth)
    kept = [
        [sum(s.kept.values()) for s in estimate(case.build_schedule(p), costs).stages]
        for p in ("window", "pass", "block", "none")
    ]
    for less, more in pairwise(kept):
        assert all(a <= b + 1e-9 for a, b in zip(less, more, strict=True))


TEMPORARIES = Temporaries(
    blocks=(5.0, 7.0), head=11.0, embed=3.0, grads=(100.0, 200.0), head_grads=40.0, embed_grads=20.0
)


@pytest.mark.parametrize("graph, expected", [(1000.0, Moment(30.0, 40.0, 40.0)), (1.0, Moment(3.0, 240.0, 200.0))])
def test_gradients_of_weights_come_into_being_while_graphs_are_released(graph, expected):
    """One pass of two blocks, whose peak is where the first gradient of weights is copied: of the head, while the graphs of both blocks
    exist, or of the upper block, whose gradient is larger than its graph, its input and its output."""
    program = compile(Sleep(window=1, passes=1), [Window(0, 1, True)], 2)
    schedule = build_schedule(program, stage_blocks(Sleep(window=1, passes=1), 2), 1, RECOMPUTE_POLICIES["none"])
    sizes = ValueSizes(1.0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (graph, graph), head=30.0)
    costs = Costs(sizes, (BlockFlops(1.0),) * 2, temporaries=(TEMPORARIES,))
    assert estimate(schedule, costs).stages[0].moment == expected


def test_without_temporaries_there_is_no_moment():
    assert estimate(circular_schedule(1, 1, 1, 1, "pass", depth=2), uniform_costs(2)).stages[0].moment == Moment()
