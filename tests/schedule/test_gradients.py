"""Carrying out a schedule gives the loss and the gradients of the program's one graph."""

import pytest
from hypothesis import HealthCheck, given, settings

from sleeptrain.schedule import RECOMPUTE_POLICIES
from tests.schedule.drawn import Case, cases
from tests.schedule.scalars import as_one_graph, by_schedule


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_every_schedule_computes_what_the_program_says(case: Case):
    loss, grads = as_one_graph(case.program, case.sleep, case.depth, case.group)
    for policy in RECOMPUTE_POLICIES:
        found, theirs = by_schedule(case.build_schedule(policy))
        assert found == pytest.approx(loss, rel=1e-12, abs=1e-14)
        assert theirs == pytest.approx(grads, rel=1e-9, abs=1e-12)
