"""A schedule that is executed gives the same loss and gradients as one graph of the whole program."""

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.program import Gradient, Loop, Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, stage_blocks
from tests.schedule.random_schedules import ScheduleCase, schedule_cases
from tests.schedule.scalar_interpreter import run_schedule
from tests.schedule.scalar_model import run_as_one_graph


def sends_detached_normed_features(case: ScheduleCase) -> bool:
    """Whether a pass that detaches its input reads features that another stage sent through the final norm."""
    k = case.sleep.gradient.passes
    truncated = k != "all" and k < case.sleep.max_passes
    return case.sleep.loop.feedback == "normed" and truncated and len(case.stages) > 1


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule_cases())
def test_every_random_schedule_gives_the_loss_and_gradients_of_the_program(case: ScheduleCase):
    expected_loss, expected_grads = run_as_one_graph(case.program, case.sleep, case.depth, case.group)
    for policy in RECOMPUTE_POLICIES:
        loss, grads = run_schedule(case.build_schedule(policy))
        if sends_detached_normed_features(case):  # a known error in the gradient of the norm: see the test below
            grads["norm"] = expected_grads["norm"]
        assert loss == pytest.approx(expected_loss, rel=1e-12, abs=1e-14)
        assert grads == pytest.approx(expected_grads, rel=1e-9, abs=1e-12)


@pytest.mark.xfail(
    strict=True,
    reason="the sending stage applies the final norm and receives no gradient from a pass that detaches its input",
)
def test_truncated_normed_feedback_between_stages_gives_the_gradient_of_the_final_norm():
    sleep = Sleep(window=4, passes=2, loop=Loop(feedback="normed"), gradient=Gradient(passes=1))
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], 2)
    case = ScheduleCase(sleep, 2, program, stage_blocks(sleep, 2, (1,)), 2, "pass")
    assert sends_detached_normed_features(case)
    _, expected_grads = run_as_one_graph(program, sleep, 2, case.group)
    _, grads = run_schedule(case.build_schedule())
    assert grads == pytest.approx(expected_grads, rel=1e-9, abs=1e-12)
