"""Stage balance against an exhaustive search over all cuts."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.program import Sleep
from sleeptrain.schedule import balance, stage_blocks


def test_costs_count_looped_blocks_once_per_pass_and_include_the_head():
    found = balance([1.0] * 8, 2, looped=(0, 8), passes=4)
    assert found.cuts == (4,) and found.costs == (16.0, 16.0) and found.waste == 0
    heavy = balance([1.0] * 8, 2, looped=(0, 8), passes=4, head=8)
    assert heavy.cuts == (5,) and heavy.costs == (20.0, 20.0)
    middle = balance([1.0] * 8, 2, looped=(4, 8), passes=4)
    assert middle.cuts == (5,) and middle.costs == (8.0, 12.0)


def test_balance_prints_a_table_and_its_cuts_give_the_stages():
    found = balance([1.0, 3.0, 1.0], 2, looped=(0, 3), passes=2, head=0.5)
    assert str(found).splitlines() == [
        "stage 0  blocks 0..1  cost 8  100% of the largest",
        "stage 1  blocks 2..2  cost 2.5  31% of the largest",
        "load imbalance     34.4% of all stages' time",
    ]
    assert [(s.start, s.stop) for s in stage_blocks(Sleep(), 3, found.cuts)] == [(0, 2), (2, 3)]


def test_more_stages_than_blocks_raise_value_error():
    with pytest.raises(ValueError, match="2 blocks cannot be shared by 3 stages"):
        balance([1.0, 1.0], 3, (0, 2), 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_no_other_cuts_have_a_smaller_largest_cost(blocks, data):
    depth = len(blocks)
    stages = data.draw(st.integers(1, depth))
    first = data.draw(st.integers(0, depth - 1))
    stop = data.draw(st.integers(first + 1, depth))
    passes, head = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 20))

    def costs(cuts):
        bounds = (0, *cuts, depth)
        stage_costs = [
            sum(blocks[b] * (passes if first <= b < stop else 1) for b in range(*pair)) for pair in pairwise(bounds)
        ]
        return (*stage_costs[:-1], stage_costs[-1] + head)

    found = balance(blocks, stages, (first, stop), passes, head)
    all_costs = [costs(cuts) for cuts in combinations(range(1, depth), stages - 1)]
    assert found.costs == costs(found.cuts)
    assert max(found.costs) == min(map(max, all_costs))
    least = min(sum(c * c for c in other) for other in all_costs if max(other) == max(found.costs))
    assert sum(c * c for c in found.costs) == least
