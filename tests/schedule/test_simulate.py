"""Simulated idle time against an independent computation."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleeptrain.schedule import BlockFlops, Costs, ValueSizes, estimate
from tests.schedule.random_schedules import ScheduleCase, schedule_cases


def idle_seconds(schedule, seconds):
    """Idle seconds by stage, from the end of every compute action, found by iterating until nothing changes."""
    actions = [
        [(a, b) for b, half in ((0, s.forward), (1, s.backward)) for a in half if a.edge is None]
        for s in schedule.stages
    ]
    ends: dict = {}
    position = [0] * len(actions)
    advanced = True
    while advanced:
        advanced = False
        for s, stage_actions in enumerate(actions):
            while position[s] < len(stage_actions):
                action, backward = stage_actions[position[s]]
                inputs = [ends.get((s, position[s] - 1), 0.0)]
                stage_op = schedule.stages[s].ops[action.op]
                if action.kind == "FWD" and not backward and stage_op.h is not None and stage_op.h.stage != s:
                    inputs.append(ends.get(("h", stage_op.h.op, action.micro, stage_op.h.stage)))
                if action.kind == "BWD":
                    inputs += [
                        ends.get(("dh", stage_op.op, action.micro, source, s)) for source in stage_op.receives_grad
                    ]
                if None in inputs:
                    break
                end = max(inputs) + seconds(s, action, backward)
                ends[s, position[s]] = end
                if action.kind == "FWD" and not backward:
                    ends["h", action.op, action.micro, s] = end
                if action.kind == "BWD" and stage_op.sends_grad:
                    ends["dh", stage_op.h.op, action.micro, s, stage_op.h.stage] = end
                position[s] += 1
                advanced = True
    total = max((ends.get((s, len(stage_actions) - 1), 0.0) for s, stage_actions in enumerate(actions)), default=0.0)
    return [total - sum(seconds(s, a, b) for a, b in stage_actions) for s, stage_actions in enumerate(actions)]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule_cases(), st.integers(0, 10**6))
def test_idle_seconds_of_every_random_schedule_equal_an_independent_computation(case: ScheduleCase, seed: int):
    costs = Costs(
        ValueSizes(1.0, *((1.0,) * case.depth,) * 4), tuple(BlockFlops(1.0 + (seed >> b) % 3) for b in range(case.depth)),
        head=float(seed % 2),
    )  # fmt: skip
    schedule = case.build_schedule()

    def seconds(s, action, backward):
        op = case.program.ops[action.op]
        tokens = op.stop - op.start
        if action.kind == "LOSS":
            return costs.head * tokens * ((2 if case.policy == "none" else 3) if backward else 1)
        if action.kind == "RECOMPUTE" and case.policy == "selective":
            return 0.0
        forward = sum(block.token for block in costs.blocks[slice(*schedule.stages[s].ops[action.op].blocks)]) * tokens
        return forward * (2 if action.kind == "BWD" else 1)

    assert [s.idle for s in estimate(schedule, costs).stages] == pytest.approx(
        idle_seconds(schedule, seconds), abs=1e-9
    )
