"""The order of an epoch: each row once, another one each epoch, the same however it is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.data.order import Order, Part

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(1, 70), st.integers(0, 5), st.booleans(), st.data())
def test_each_row_once_and_cuts_do_not_matter(sources, block, epoch, shuffle, data):
    parts, first = [], 0
    for shards in sources:
        parts.append(Part(tuple(shards), first, sum(shards)))
        first += sum(shards)
    order = Order(parts, seed=3, shuffle=shuffle, block=block)
    whole = order.rows(epoch, 0, order.length)
    assert sorted(whole) == list(range(first))
    if not shuffle:
        assert whole.tolist() == list(range(first))
    a = data.draw(st.integers(0, first))
    b = data.draw(st.integers(a, first))
    assert order.rows(epoch, a, b).tolist() == whole[a:b].tolist()


def test_rows_are_mixed_and_epochs_differ():
    order = Order([Part((500, 500), 0, 1000)], seed=1, shuffle=True)
    epochs = [order.rows(epoch, 0, 1000) for epoch in range(3)]
    assert not (epochs[0] == epochs[1]).any() or (epochs[0] == epochs[1]).mean() < 0.02
    for rows in epochs:  # no trace of the order of writing, neither near nor far
        assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.15
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.15
    again = Order([Part((500, 500), 0, 1000)], seed=1, shuffle=True)
    assert (again.rows(2, 0, 1000) == epochs[2]).all()
    other = Order([Part((500, 500), 0, 1000)], seed=2, shuffle=True)
    assert (other.rows(0, 0, 1000) == epochs[0]).mean() < 0.02


def test_blocks_keep_to_few_shards():
    order = Order([Part((10,) * 100, 0, 1000)], seed=1, shuffle=True, block=50)
    for start in range(0, 1000, 50):
        assert len({row // 10 for row in order.rows(0, start, start + 50).tolist()}) == 5


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_share_of_a_source_goes_round_through_all_of_it(shuffle):
    small, large = Part((3, 4), 0, 10), Part((20, 10), 7, 12)
    order = Order([small, large], seed=0, shuffle=shuffle)
    assert order.length == 22
    seen = np.zeros(37, int)
    for epoch in range(7):
        rows = order.rows(epoch, 0, 22)
        assert (rows < 7).sum() == 10
        seen += np.bincount(rows, minlength=37)
    assert (seen[:7] == 10).all()  # 7 epochs of 10 out of 7 rows
    assert seen[7:].min() >= 2 and seen[7:].max() <= 3  # 84 out of 30


def test_beyond_an_epoch_is_an_error():
    with pytest.raises(ValueError, match="not within an epoch of 4"):
        Order([Part((4,), 0, 4)], 0, True).rows(0, 3, 5)
