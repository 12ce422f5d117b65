"""The order of one source: every row once an epoch, found from any place, with few shards in use at a time."""

import numpy as np
import pytest

from sleeptrain.data import order
from sleeptrain.data.order import SourceOrder


@pytest.fixture
def narrow(monkeypatch):
    """A spread of 64 rows, so that an epoch has many parts."""
    monkeypatch.setattr(order, "SPREAD", 64)


def rows(shards, positions, seed=(1, 0), first=0, shuffle=True):
    source = SourceOrder(shards, first, seed, shuffle)
    return [source.row(position) for position in positions]


SIZES = [
    pytest.param([10] * 100, id="many small shards"),
    pytest.param([1000], id="one shard"),
    pytest.param([3, 200, 1, 64, 65, 17, 0, 5], id="shards of all sizes"),
    pytest.param([1], id="one row"),
]


@pytest.mark.parametrize("shards", SIZES)
def test_every_epoch_has_every_row_once(narrow, shards):
    total = sum(shards)
    read = rows(shards, range(3 * total), first=500)
    epochs = [read[start : start + total] for start in range(0, 3 * total, total)]
    assert all(sorted(epoch) == list(range(500, 500 + total)) for epoch in epochs)
    assert total == 1 or len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("shards", SIZES)
def test_a_row_does_not_depend_on_what_was_read_before(narrow, shards):
    places = range(2 * sum(shards))
    expected = rows(shards, places)
    for place in np.random.default_rng(0).integers(len(places), size=30).tolist():
        assert rows(shards, [place]) == [expected[place]]
    backwards = rows(shards, reversed(places))
    assert backwards[::-1] == expected


def test_seeds_and_sources_have_orders_of_their_own(narrow):
    orders = [rows([10] * 30, range(300), seed) for seed in ((1, 0), (1, 1), (2, 0))]
    assert all(np.mean(np.equal(a, b)) < 0.03 for a, b in zip(orders, orders[1:] + orders[:1], strict=True))


def test_few_shards_are_in_use_at_a_time_and_new_ones_come_steadily(narrow):
    read = np.array(rows([4] * 250, range(1000))) // 4
    for start in range(0, 1000 - 16, 16):
        assert len(set(read[start : start + 16].tolist()) - set(read[:start].tolist())) <= 14
    for shard in range(250):
        places = (read == shard).nonzero()[0]
        assert places.max() - places.min() <= 64 + 40, "within the spread and the noise of the density"


def test_without_shuffling_rows_are_in_order():
    assert rows([3, 2], range(12), first=7, shuffle=False) == [7, 8, 9, 10, 11] * 2 + [7, 8]


def test_an_epoch_is_well_shuffled_where_it_is_shorter_than_the_spread():
    read = np.array(rows([100] * 10, range(1000)))
    assert abs(np.corrcoef(read, np.arange(1000))[0, 1]) < 0.15
    assert abs(np.corrcoef(read[:-1], read[1:])[0, 1]) < 0.15
