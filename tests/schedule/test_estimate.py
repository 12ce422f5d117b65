"""Prices against counting by hand and against a clock of the test's own."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleeptrain.program import Evict, Gradient, Loop, Pass, Sleep, Window, compile, pairs_seen  # fmt: skip
from sleeptrain.schedule import (
    RECOMPUTE_POLICIES,
    Costs,
    RecomputePolicy,
    ValueSizes,
    build_schedule,
    estimate,
    stage_blocks,
)
from sleeptrain.schedule.schedule import Edge
from tests.schedule.drawn import Case, cases


def even(depth, **kwargs):
    """Blocks that cost one FLOP a token, on a machine of one FLOP a second."""
    sizes = ValueSizes(
        h=2.0, fast=(64.0,) * depth, conv=(3.0,) * depth, kv=(0.0,) * depth, graph=(40.0,) * depth, head=50.0
    )
    return Costs(sizes, (1.0,) * depth, (0.0,) * depth, **kwargs)


def circular(stages, windows, passes, group, policy="none", recompute=None, depth=None, targets=True):
    depth = depth or stages
    sleep = Sleep(window=4, passes=passes, loop=Loop(trigger="every"))
    layout = [Window(4 * i, 4 * i + 4, targets) for i in range(windows)]
    cuts = tuple(depth // stages * i for i in range(1, stages))
    return build_schedule(
        compile(sleep, layout, depth), stage_blocks(sleep, depth, cuts), group, recompute or RECOMPUTE_POLICIES[policy]
    )


@pytest.mark.parametrize(
    "stages,windows,passes,extra", [(1, 2, 3, 0), (2, 2, 1, 0), (2, 3, 4, 1), (4, 2, 3, 0), (3, 5, 2, 2)]
)
def test_idle_is_the_formula_of_the_circular_pipeline(stages, windows, passes, extra):
    group = stages + extra
    found = estimate(circular(stages, windows, passes, group), even(stages))
    turns = group * ((windows - 1) * passes + 1)
    assert found.bubble == pytest.approx((stages - 1) / (turns + stages - 1))
    slot = 4 * (1 + 2)
    assert [s.idle for s in found.stages] == pytest.approx([(stages - 1) * slot] * stages)
    assert found.seconds == pytest.approx((turns + stages - 1) * slot)


def test_four_of_everything_idles_less_than_a_twentieth():
    sleep = Sleep(window=4, passes=4)
    asleep = [Window(4 * i, 4 * i + 4, False) for i in range(4)]
    found = estimate(
        build_schedule(compile(sleep, asleep, 4), stage_blocks(sleep, 4, (1, 2, 3)), 4, RECOMPUTE_POLICIES["none"]),
        even(4),
    )
    assert found.bubble == pytest.approx(3 / 67) and found.bubble < 0.05
    assert all(s.backward == 0 for s in found.stages)


def test_two_more_micro_batches_than_stages_hide_a_slow_link():
    slow = even(4, latency=0.15 * 4)
    bare, hidden = (estimate(circular(4, 4, 4, group), slow).bubble for group in (4, 6))
    assert 0.1 < bare < 0.2 and hidden < 0.06


def test_flops_seconds_and_traffic_by_hand():
    # Two blocks on two stages, one window of 4 tokens asleep for 2 passes and one of 2 tokens awake; 2 micro-batches.
    sleep = Sleep(window=4, passes=2)
    program = compile(sleep, [Window(0, 4, False), Window(4, 6, True)], 2)
    costs = even(2, head=10.0, bandwidth=100.0)
    found = estimate(build_schedule(program, stage_blocks(sleep, 2, (1,)), 2, RECOMPUTE_POLICIES["pass"]), costs)
    assert [s.forward for s in found.stages] == [2 * 10.0, 2 * (10.0 + 2 * 10)]
    assert [s.again for s in found.stages] == [2 * 10.0, 2 * (10.0 + 2 * 10)]
    assert [s.backward for s in found.stages] == [2 * 20.0, 2 * (20.0 + 4 * 10)]
    assert [s.busy for s in found.stages] == [s.forward + s.again + s.backward for s in found.stages]
    h, ways = 2.0, [(0, 1, "forward", 10), (1, 0, "forward", 4), (1, 0, "backward", 10), (0, 1, "backward", 4)]
    assert found.traffic == {Edge(a, b, d): 2 * tokens * h for a, b, d, tokens in ways}
    assert found.axes == {"pipe": 2 * 28 * h, "host": 0.0}


def test_window_restores_every_pass_but_the_last_once_more():
    depth, windows, passes = 2, 3, 4
    again = {
        p: estimate(circular(1, windows, passes, 1, p, depth=depth), even(depth)).stages[0].again
        for p in RECOMPUTE_POLICIES
    }
    items = (windows - 1) * passes + 1
    one = 4 * depth
    assert again == {"none": 0, "block": items * one, "pass": items * one,
                     "window": items * one + (windows - 1) * (passes - 1) * one}  # fmt: skip


def test_attention_pays_for_the_keys_it_sees():
    sleep = Sleep(window=4, evict=Evict("sliding"))
    program = compile(sleep, [Window(0, 4, True), Window(4, 8, True)], 1)
    sizes = ValueSizes(1.0, (0.0,), (0.0,), (1.0,), (0.0,))
    found = estimate(
        build_schedule(program, stage_blocks(sleep, 1), 1, RECOMPUTE_POLICIES["none"]), Costs(sizes, (0.0,), (1.0,))
    )
    assert found.stages[0].forward == (1 + 2 + 3 + 4) + 4 * 4


def test_bytes_kept_by_hand():
    depth, group, passes = 4, 2, 3
    sleep = Sleep(window=4, passes=passes)
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], depth)
    first, last = {}, {}
    for policy in RECOMPUTE_POLICIES:
        stages = estimate(
            build_schedule(program, stage_blocks(sleep, depth, (2,)), group, RECOMPUTE_POLICIES[policy]), even(depth)
        ).stages
        first[policy], last[policy] = stages[0].kept, stages[1].kept
    token, fast, conv = 2.0 * 4, 2 * 64.0, 2 * 3.0
    # Stage 0 embeds in pass 1 of both windows and receives in passes 2 and 3; four states entered, one came out.
    assert first["pass"] == {"h": 0, "received h": group * 2 * token, "S": group * 5 * fast, "conv": group * 5 * conv,
                             "kv": 0, "body": 0, "gradients": 0}  # fmt: skip
    assert last["pass"]["received h"] == group * 4 * token
    # Under window: the states before the step, after the first window, and the result.
    assert first["window"]["S"] == group * 3 * fast and first["window"]["received h"] == first["pass"]["received h"]
    assert first["block"]["body"] == group * 4 * 1 * token
    # Graphs keep the features between two blocks too; where a pass reads tokens, also those that enter the first.
    assert first["none"]["body"] == group * (4 * 2 * 40.0 * 4 + (4 + 2) * token)
    assert last["none"]["body"] == group * (4 * 2 * 40.0 * 4 + 50.0 * 4 + 4 * token)


def test_rows_multiply_and_offload_moves_what_waits():
    kept = estimate(circular(2, 3, 4, 2, "pass", depth=4), even(4))
    away = estimate(circular(2, 3, 4, 2, depth=4, recompute=RecomputePolicy(offload=True)), even(4))
    assert away.axes["host"] == 2 * sum(s.host for s in away.stages) > 0 and kept.axes["host"] == 0
    for a, k in zip(away.stages, kept.stages, strict=True):
        assert sum(a.peak.values()) < sum(k.peak.values())
        assert a.host + sum(a.kept.values()) == pytest.approx(sum(k.kept.values()))


def test_caches_count_under_sliding():
    sleep = Sleep(window=4, passes=2, evict=Evict("sliding"))
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], 2)
    sizes = ValueSizes(2.0, (8.0, 8.0), (1.0, 1.0), (5.0, 0.0), (9.0, 9.0), rows=3)
    found = estimate(
        build_schedule(program, stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["pass"]),
        Costs(sizes, (1.0, 1.0), (0.0, 0.0)),
    )
    assert found.stages[0].kept["kv"] == 3 * 3 * 5.0


def test_graphs_of_blocks_that_attend_keep_what_they_read_from_the_cache():
    sleep = Sleep(window=4, evict=Evict("sliding"))
    program = compile(sleep, [Window(4 * i, 4 * i + 4, True) for i in range(3)], 2)
    plain = ValueSizes(2.0, (8.0, 8.0), (1.0, 1.0), (5.0, 0.0), (9.0, 9.0))
    costs = [Costs(sizes, (1.0, 1.0), (0.0, 0.0)) for sizes in (plain, replace(plain, cached=(7.0, 0.0)))]
    without, found = (
        estimate(build_schedule(program, stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["none"]), c).stages[0].kept
        for c in costs
    )
    assert found["body"] - without["body"] == 7.0 * 3 + 7.0 * 3  # three cached tokens in the second and third window


def test_a_block_that_reaches_less_far_computes_fewer_pairs():
    program = compile(Sleep(window=4, evict=Evict("sliding")), [Window(0, 4, True), Window(4, 8, True)], 1)
    first, second = (op for op in program.ops if isinstance(op, Pass))
    assert [pairs_seen(program, op) for op in (first, second)] == [1 + 2 + 3 + 4, 4 * 4]
    assert [pairs_seen(program, op, 3) for op in (first, second)] == [1 + 2 + 3 + 3, 4 * 3]
    assert pairs_seen(program, first, 9) == 10


def test_truncated_backward_costs_less():
    sleep = Sleep(window=4, passes=4, gradient=Gradient(passes=1))
    layout = [Window(0, 4, False), Window(4, 8, True)]
    cut = estimate(
        build_schedule(compile(sleep, layout, 2), stage_blocks(sleep, 2), 1, RECOMPUTE_POLICIES["pass"]), even(2)
    ).stages[0]
    assert (cut.forward, cut.again, cut.backward) == (5 * 8, 2 * 8, 2 * 2 * 8)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_policy_keeps_less_than_the_one_before(stages):
    peaks = [
        max(sum(s.peak.values()) for s in estimate(circular(stages, 4, 4, max(2, stages), p, depth=8), even(8)).stages)
        for p in ("window", "pass", "block", "none")
    ]
    assert peaks == sorted(peaks) and len(set(peaks)) == 4


def test_groups_repeat_the_same_schedule_and_so_the_same_peak():
    once = circular(2, 3, 2, 2, "pass", depth=4)
    assert once == circular(2, 3, 2, 2, "pass", depth=4)
    for s, stage in enumerate(once.stages):
        left = estimate(once, even(4)).stages[s]
        assert set(left.peak) == set(left.kept) and stage.backward[-1].frees


def test_what_cannot_run_has_no_price():
    schedule = circular(2, 2, 2, 2)
    with pytest.raises(ValueError, match="a schedule that cannot run has no price: deadlock"):
        estimate(replace(schedule, channels={e: e.direction for e in schedule.channels}), even(2))


def clock(schedule, seconds):
    """Idle seconds by stage: ends of compute, found by asking again until nothing changes."""
    work = [
        [(a, b) for b, half in ((0, s.forward), (1, s.backward)) for a in half if a.edge is None]
        for s in schedule.stages
    ]
    ends: dict = {}
    places = [0] * len(work)
    moved = True
    while moved:
        moved = False
        for s, mine in enumerate(work):
            while places[s] < len(mine):
                action, half = mine[places[s]]
                needs = [ends.get((s, places[s] - 1), 0.0)]
                item = schedule.stages[s].ops[action.op]
                if action.kind == "FWD" and not half and item.h is not None and item.h.stage != s:
                    needs.append(ends.get(("h", item.h.op, action.micro, item.h.stage)))
                if action.kind == "BWD":
                    needs += [ends.get(("dh", item.op, action.micro, back, s)) for back in item.returned]
                if None in needs:
                    break
                end = max(needs) + seconds(s, action, half)
                ends[s, places[s]] = end
                if action.kind == "FWD" and not half:
                    ends["h", action.op, action.micro, s] = end
                if action.kind == "BWD" and item.returns:
                    ends["dh", item.h.op, action.micro, s, item.h.stage] = end
                places[s] += 1
                moved = True
    total = max((ends.get((s, len(mine) - 1), 0.0) for s, mine in enumerate(work)), default=0.0)
    return [total - sum(seconds(s, a, b) for a, b in mine) for s, mine in enumerate(work)]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(), st.integers(0, 10**6))
def test_idle_seconds_are_those_of_another_clock(case: Case, seed: int):
    costs = Costs(
        ValueSizes(1.0, *((1.0,) * case.depth,) * 4), tuple(1.0 + (seed >> b) % 3 for b in range(case.depth)),
        (0.0,) * case.depth, head=float(seed % 2),
    )  # fmt: skip
    schedule = case.build_schedule()

    def seconds(s, action, half):
        op = case.program.ops[action.op]
        tokens = op.stop - op.start
        if action.kind == "LOSS":
            return costs.head * tokens * ((2 if case.policy == "none" else 3) if half else 1)
        once = sum(costs.flops[slice(*schedule.stages[s].ops[action.op].blocks)]) * tokens
        return once * (2 if action.kind == "BWD" else 1)

    assert [s.idle for s in estimate(schedule, costs).stages] == pytest.approx(clock(schedule, seconds), abs=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_policies_keep_less_in_order_whatever_the_program(case: Case):
    costs = even(case.depth)
    kept = [
        [sum(s.kept.values()) for s in estimate(case.build_schedule(p), costs).stages]
        for p in ("window", "pass", "block", "none")
    ]
    for less, more in pairwise(kept):
        assert all(a <= b + 1e-9 for a, b in zip(less, more, strict=True))
