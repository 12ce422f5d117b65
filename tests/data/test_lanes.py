"""The order in which lanes read: consecutive rows, every row once an epoch, equal for all ranks, workers, kills and resumes."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.data import Data, Source
from sleeptrain.data.lane_draws import LaneDraws
from sleeptrain.data.mixture import Mix
from sleeptrain.data.order import RunOrder
from sleeptrain.data.reader import Reader
from sleeptrain.errors import UserError
from tests.data.texts import build_text

ROW, WINDOW, LANES = 12, 6, 4
FEW = settings(max_examples=12, deadline=None, derandomize=True)
MANY = settings(max_examples=200, deadline=None)
STOPS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3), st.sampled_from([1, 2, 4])), min_size=1, max_size=5)
"""Steps between saves, steps after one that are lost, and ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of 1 to 300 tokens."""
    random = np.random.default_rng(0)
    documents = [bytes(random.integers(97, 110, size=random.integers(1, 300)).tolist()) for _ in range(60)]
    return build_text(tmp_path_factory.mktemp("lanes"), documents)


@pytest.fixture(scope="module")
def data(folder):
    return Data([Source(folder)], row=ROW, lane=5 * ROW)


def readers(data, world=1, accumulation=1):
    micro = LANES // world // accumulation
    return [
        Reader(data, micro=micro, accumulation=accumulation, rank=rank, world=world, seed=3, window=WINDOW)
        for rank in range(world)
    ]


def read(opened):
    """Rows, whether they continue, and tokens of one step, in the order of the lanes."""
    columns = []
    for reader in opened:
        batches = reader.next_step()
        ids = [n for batch in batches for n in batch.ids.tolist()]
        continued = [flag for batch in batches for flag in batch.continued.tolist()]
        columns.append(list(zip(ids, continued, strict=True)))
    return [columns[lane % len(opened)][lane // len(opened)] for lane in range(LANES)]


@pytest.fixture(scope="module")
def expected(data):
    """Three epochs, by one rank without workers."""
    (reader,) = readers(data)
    steps = [read([reader]) for _ in range(3 * reader.samples_per_epoch // LANES)]
    reader.close()
    return steps


def test_a_lane_reads_runs_of_consecutive_rows(expected, data):
    (reader,) = readers(data)
    rows = reader.samples_per_epoch
    for lane in range(LANES):
        runs = list[list[int]]()
        for step in expected:
            row, continues = step[lane]
            if continues:
                assert row == runs[-1][-1] + 1
                runs[-1].append(row)
            else:
                runs.append([row])
        whole = [run for run in runs[:-1] if run[-1] != rows - 1]
        assert {len(run) for run in whole} == {3, 4, 5}, "between half of data.lane and all of it"
    begins = Counter(sum(not continues for _, continues in step) for step in expected)
    assert begins[LANES] <= len(expected) // 10, "lanes do not begin runs in the same step"


def test_every_row_is_read_once_before_any_is_read_again_by_the_next_runs(expected, data):
    """Lanes are in several runs at a time, so an epoch overlaps the next one by these."""
    (reader,) = readers(data)
    rows = reader.samples_per_epoch
    counts = Counter(row for step in expected for row, _ in step)
    assert set(counts) == set(range(rows)) and {2, 3, 4} >= set(counts.values())
    assert sum(count != 3 for count in counts.values()) <= 2 * 5 * LANES
    begun = [row for step in expected for row, continues in step if not continues]
    runs = len(set(begun))
    assert len(set(begun[:runs])) == runs and begun[:runs] != sorted(begun[:runs])


@pytest.mark.parametrize("world, accumulation, workers", [(2, 1, 0), (4, 1, 0), (1, 2, 3), (2, 2, 1)])
def test_the_order_does_not_depend_on_ranks_micro_batches_and_workers(data, expected, world, accumulation, workers):
    opened = readers(replace(data, workers=workers), world, accumulation)
    assert [read(opened) for _ in range(30)] == expected[:30]
    for reader in opened:
        reader.close()


def check_stops(data, expected, stops):
    """A run that reads some steps, saves, reads some more that are lost, and continues with another number of ranks."""
    state, done = None, 0
    for steps, lost, world in stops:
        opened = readers(data, world)
        for reader in opened:
            if state is not None:
                reader.load_state_dict(json.loads(state))
        for _ in range(steps):
            assert read(opened) == expected[done]
            done += 1
        states = {json.dumps(reader.state_dict()) for reader in opened}
        assert len(states) == 1
        (state,) = states
        for ahead in range(lost):
            assert read(opened) == expected[done + ahead]
        for reader in opened:
            reader.close()


@FEW
@given(STOPS)
def test_kills_and_resumes_in_other_layouts_change_nothing(data, expected, stops):
    check_stops(data, expected, stops)


@pytest.mark.exhaustive
@MANY
@given(STOPS)
def test_many_kills_and_resumes(data, expected, stops):
    check_stops(data, expected, stops)


def test_a_divergence_leaves_its_runs_out(data, expected):
    (reader,) = readers(data)
    for step in expected[:7]:
        assert read([reader]) == step
    state, streak = reader.state_dict(), []
    diverged = set[int]()
    for _ in range(2):
        diverged |= {row for row, _ in read([reader])}
        streak.append(reader.last_read)
    reader.load_state_dict(state)
    reader.leave_out(streak)
    first = read([reader])
    assert not any(continues for _, continues in first), "all lanes were in a run of the streak"
    later = [row for _ in range(20) for row, _ in read([reader])]
    assert not diverged & {*later, *(row for row, _ in first)}
    reader.close()


@pytest.mark.parametrize("shards", [[40], [7, 0, 13, 1, 19], [1], [3, 3]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_runs_cover_every_row_once_an_epoch(shards, shuffle):
    order = RunOrder(shards, 100, (1, 2), shuffle, 4)
    for epoch in range(2):
        runs = [
            [order.row(position, offset) for offset in range(order.rows(position))]
            for position in range(epoch * len(order), (epoch + 1) * len(order))
        ]
        assert sorted(row for run in runs for row in run) == list(range(100, 100 + sum(shards)))
        assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)
        assert all(2 <= len(run) <= 4 for run in runs if run[-1] != 99 + sum(shards))


@FEW
@given(st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any), st.integers(1, 6), st.integers(2, 5))
def test_the_rows_of_a_source_differ_from_its_share_by_about_a_run_for_every_lane(shares, lanes, longest):
    runs = [RunOrder([200 + 31 * source], 0, (0, source), True, longest) for source in range(len(shares))]
    draws = LaneDraws(Mix(tuple(((0, float(share)),) for share in shares)), runs, lanes)
    for step in range(1, 120):
        draws.next_step()
        assert sum(draws.rows) == step * lanes
        for share, rows in zip(shares, draws.rows, strict=True):
            assert abs(rows - step * lanes * share / sum(shares)) <= longest * (lanes + 1), (step, rows)
            assert rows == 0 or share > 0


@pytest.mark.parametrize(
    "lane, message",
    [
        (ROW, r"data\.lane = 12: must be a multiple of the 12 tokens of a row, two rows at least"),
        (30, r"data\.lane = 30: must be a multiple of the 12 tokens"),
        (10**6 * ROW, r"data\.lane = 12,000,000: the train split of out has 1 runs of rows of so many tokens"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(data, lane, message):
    with pytest.raises(UserError, match=message):
        readers(replace(data, lane=lane))


def test_a_state_of_other_lanes_is_refused(data):
    (reader,) = readers(data)
    state = reader.state_dict()
    with pytest.raises(UserError, match=r"train\.batch is 2, and the checkpoint has 4 lanes"):
        Reader(data, micro=2, seed=3, window=WINDOW).load_state_dict(state)
    with pytest.raises(UserError, match="lanes of another length"):
        readers(replace(data, lane=4 * ROW))[0].load_state_dict(state)
    with pytest.raises(UserError, match="lanes of another length"):
        readers(replace(data, lane=None))[0].load_state_dict(state)
