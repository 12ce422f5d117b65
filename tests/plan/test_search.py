"""The search: its layouts are accepted and fit, its estimates order layouts as exact plans do, and it says why others lose."""

import itertools
import random
import re
from dataclasses import replace

import pytest

from sleeptrain.errors import UserError
from sleeptrain.plan import (
    DeviceMemory,
    Hardware,
    advise,
    make_plan,
    resolve_data,
    search,
    search_json,
    search_text,
    step_time,
)
from sleeptrain.plan.choices import Layouts, choices
from sleeptrain.plan.device import needed
from sleeptrain.plan.quick import QuickPlanner
from sleeptrain.recipe import check_batch, load_recipe
from sleeptrain.train.layout import resolve_layout
from tests.plan.plans import SMALL

PROCESSES = 4
SLOW = Hardware(gpus=2, flops=1e9, node_bandwidth=1e8, network_bandwidth=1e7)
MEMORY = DeviceMemory(1.3 * 2**20, "a test")
GIVEN = [change for change in SMALL if not change.startswith(("train.micro", "mesh.group"))]


def reload(changes):
    return resolve_data(load_recipe("text-small", [*GIVEN, "train.batch=16", *changes]), 3)


def plan_with(overrides):
    resolved, data_layout = reload(overrides)
    layout = resolve_layout(resolved.value, data_layout.windows, check_batch(resolved, PROCESSES))
    return make_plan(layout, data_layout)


@pytest.fixture(scope="module")
def found():
    return search(reload, PROCESSES, MEMORY, SLOW)


def test_found_layouts_are_accepted_by_the_rules_and_fit(found):
    assert len(found.best) == 5 and len({each.choice.mesh for each in found.best}) == 5
    assert [each.seconds for each in found.best] == sorted(each.seconds for each in found.best)
    for each in found.best:
        plan = plan_with(each.choice.overrides())
        assert MEMORY.holds(plan) and step_time(plan, SLOW).seconds == each.seconds


def test_losers_are_counted_by_reason(found):
    assert found.refused["memory"] > 0 and found.refused["tensor-heads"] > 0 and found.refused["groups"] > 0
    assert found.slower + len(found.best) + sum(found.refused.values()) == found.seen
    resolved, data_layout = reload(())
    layouts, refused = Layouts(resolved, data_layout), {}
    for choice in choices(resolved, PROCESSES):
        layout = layouts.of(choice)
        if isinstance(layout, tuple):
            refused.setdefault(layout[0], choice)
    assert refused.keys() == found.reasons.keys()
    for rule, choice in refused.items():
        with pytest.raises(UserError, match=re.escape(found.reasons[rule])):
            reload(choice.overrides())
        assert found.reasons[rule] in search_text(found, PROCESSES, MEMORY, SLOW, assumed=True)
    body = search_json(found, PROCESSES, MEMORY, SLOW)
    assert body["refused"] == dict(found.refused) and body["best"][0]["step"]["seconds"] == found.best[0].seconds


@pytest.mark.slow
def test_estimates_order_layouts_as_exact_plans_do():
    resolved, data_layout = reload(())
    layouts, quick = Layouts(resolved, data_layout), QuickPlanner(data_layout, SLOW)
    possible = [choice for choice in choices(resolved, PROCESSES) if not isinstance(layouts.of(choice), tuple)]
    pairs = []
    for choice in random.Random(0).sample([choice for choice in possible if choice.micro <= 2], 12):
        estimated, plan = quick.estimate(layouts.of(choice)), plan_with(choice.overrides())
        exact = needed(plan), step_time(plan, SLOW).seconds
        assert estimated.memory == pytest.approx(exact[0], rel=0.03), choice
        assert estimated.time.seconds == pytest.approx(exact[1], rel=0.1), choice
        pairs.append(((estimated.memory, estimated.time.seconds), exact))
    for (guess, exact), (other_guess, other_exact) in itertools.combinations(pairs, 2):
        for i in (0, 1):
            if exact[i] > 1.15 * other_exact[i]:
                assert guess[i] > other_guess[i]


def test_what_the_command_line_sets_stays():
    resolved, _ = reload(["mesh.pipe=2", "mesh.zero=2", "train.micro=1", "train.recompute=window"])
    every = list(choices(resolved, PROCESSES))
    assert {(c.pipe, c.zero, c.micro, c.recompute) for c in every} == {(2, 2, 1, "window")}
    assert {c.mesh for c in every} == {(2, 2, 1), (1, 2, 2)}


def test_where_nothing_fits_the_smallest_layout_is_named():
    nothing = search(reload, PROCESSES, DeviceMemory(1000.0, "a test"), SLOW)
    assert nothing.best == () and "No layout fits. The one that needs least" in search_text(
        nothing, PROCESSES, MEMORY, SLOW, False
    )


@pytest.mark.slow
def test_advice_is_one_change_that_fits():
    start = ["mesh.data=4", "train.recompute=none", "train.micro=4"]
    resolved, data_layout = reload(start)
    plan = plan_with(start)
    short = DeviceMemory(needed(plan), "a test")  # 90 % of it may be filled
    advice = advise(lambda changes: reload([*start, *changes]), resolved, data_layout, plan, short)
    assert (
        not advice.fits
        and ("train.micro=2",) in dict(advice.changes)
        and ("train.recompute=selective",) in dict(advice.changes)
    )
    assert advice.largest_micro == 2
    for overrides, n in advice.changes:
        assert needed(plan_with([*start, *overrides])) == n <= short.usable
    ample = advise(lambda changes: reload([*start, *changes]), resolved, data_layout, plan, replace(short, total=1e9))
    assert ample.fits and list(ample.lines()) == ["largest train.micro that fits: 4"]
