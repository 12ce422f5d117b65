"""A schedule that is executed gives the same loss and gradients as one graph of the whole program."""

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.schedule import RECOMPUTE_POLICIES
from tests.schedule.random_schedules import ScheduleCase, schedule_cases
from tests.schedule.scalar_interpreter import run_schedule
from tests.schedule.scalar_model import run_as_one_graph


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule_cases())
def test_every_random_schedule_gives_the_loss_and_gradients_of_the_program(case: ScheduleCase):
    expected_loss, expected_grads = run_as_one_graph(case.program, case.sleep, case.depth, case.group)
    for policy in RECOMPUTE_POLICIES:
        loss, grads = run_schedule(case.build_schedule(policy))
        assert loss == pytest.approx(expected_loss, rel=1e-12, abs=1e-14)
        assert grads == pytest.approx(expected_grads, rel=1e-9, abs=1e-12)
