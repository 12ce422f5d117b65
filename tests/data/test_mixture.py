"""The order of a mixture: exact counts against the sum of the proportions, and one order for all ranks, workers and resumes."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_data import shards
from sleep_data.rule110 import Rule110
from sleeptrain.data import Data, Reader, Source
from sleeptrain.data.draws import Draws
from sleeptrain.data.mixture import Mix, Mixer
from sleeptrain.errors import UserError

FEW = settings(max_examples=40, deadline=None, derandomize=True)
POSITIVE = st.floats(1e-3, 10.0)


def mixes(share):
    points = st.dictionaries(st.integers(0, 60), share, min_size=1, max_size=4).map(
        lambda one: tuple(sorted(one.items()))
    )
    return st.lists(points, min_size=1, max_size=7).map(lambda sources: Mix(tuple(sources)))


MIXES = mixes(st.one_of(st.just(0.0), POSITIVE)).filter(lambda mix: mix.zero_step() is None)


def shares_at(points, step):
    """The shares of the sources in a row of a step, by numpy."""
    proportions = [np.interp(step, *zip(*one, strict=True)) for one in points]
    return np.array(proportions) / sum(proportions)


def deviations(mix, rows, steps=75):
    """The largest difference between counts and sums of shares after any step, and the rows at shares of 0."""
    mixer, difference, largest, wrong = Mixer(mix, rows), np.zeros(len(mix.points)), 0.0, 0
    for step in range(steps):
        counts, shares = np.bincount(mixer.next_step(), minlength=len(mix.points)), shares_at(mix.points, step)
        assert counts.sum() == rows
        difference += counts - rows * shares
        largest, wrong = max(largest, abs(difference).max()), wrong + counts[shares == 0].sum()
    return largest, wrong


@FEW
@given(mixes(POSITIVE), st.integers(1, 9))
def test_after_every_step_counts_differ_from_the_sum_of_shares_by_less_than_one(mix, rows):
    """Any number of sources, any schedule, down to one row a step."""
    assert deviations(mix, rows)[0] < 1 + 1e-9


@FEW
@given(MIXES, st.integers(1, 9))
def test_a_source_gets_no_row_where_its_proportion_is_zero(mix, rows):
    """What it is owed goes to the others; it is less than a row for each."""
    largest, wrong = deviations(mix, rows)
    assert wrong == 0 and largest < len(mix.points)


def test_proportions_of_zero_from_a_step_on():
    mix = Mix((((0, 0.5), (10, 0.5), (11, 0.0)), ((0, 0.5),), ((20, 0.0), (21, 1.0))))
    mixer = Mixer(mix, 8)
    steps = [Counter(mixer.next_step()) for _ in range(40)]
    assert all(step == {0: 4, 1: 4} for step in steps[:11])
    assert all(step == {1: 8} for step in steps[11:21])
    assert all(step.keys() == {1, 2} for step in steps[22:]) and sum(step[2] for step in steps[21:]) in (101, 102)


def test_a_source_that_begins_late_is_drawn_on_time_and_alike_after_a_resume():
    """However many steps before it, and whenever the run was stopped, a source gets its rows when they are due."""
    mix = Mix((((0, 0.5),), ((0, 0.3),), ((0, 0.0), (10_100, 0.0), (10_400, 0.4)), ((0, 0.0),)))
    mixer = Mixer(mix, 1)
    sources = [mixer.next_step()[0] for _ in range(10_090)]
    resumed = Mixer(mix, 1, mixer.step, mixer.credits)
    sources += [mixer.next_step()[0] for _ in range(510)]
    shares = np.array([np.interp(np.arange(len(sources)), *zip(*one, strict=True)) for one in mix.points])
    difference = (shares / shares.sum(0) - (np.array(sources) == np.arange(4)[:, None])).cumsum(1)
    assert abs(difference).max() < 1 + 1e-9
    assert [resumed.next_step()[0] for _ in range(510)] == sources[-510:]


def test_without_proportions_all_sources_end_their_epochs_together():
    mixer = Mixer(Mix.by_size([7, 1000, 93]), 11)
    for _ in range(3):
        assert Counter(source for _ in range(100) for source in mixer.next_step()) == {0: 7, 1: 1000, 2: 93}
        assert mixer.credits == [0, 0, 0]


@FEW
@given(MIXES, st.integers(1, 9), st.lists(st.integers(0, 39), max_size=6))
def test_draws_go_on_from_any_state(mix, rows, stops):
    """Resumed from JSON at any steps, what is drawn is what one reader draws; every source is drawn in its order."""
    whole = Draws(mix, rows)
    expected = [whole.next_step() for _ in range(40)]
    resumed, found = Draws(mix, rows), []
    for step in range(40):
        if step in stops:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = Draws(mix, rows)
            resumed.load_state_dict(state)
        found.append(resumed.next_step())
    assert found == expected and resumed.state_dict() == whole.state_dict()
    for source in range(len(mix.points)):
        drawn = [position for step in expected for one, position, _ in step if one == source]
        assert drawn == list(range(whole.rows[source]))


@FEW
@given(mixes(POSITIVE), st.data(), st.integers(1, 9))
def test_draws_go_on_in_another_mix(mix, data, rows):
    """From then on counts differ from the sum of the new shares by the row that may be owed from before, and less than one."""
    sizes = st.lists(st.integers(1, 50), min_size=len(mix.points), max_size=len(mix.points))
    before, after = data.draw(st.permutations([mix, Mix.by_size(data.draw(sizes))]))
    draws, difference = Draws(before, rows), np.zeros(len(mix.points))
    for _ in range(20):
        draws.next_step()
    state = json.loads(json.dumps(draws.state_dict()))
    draws = Draws(after, rows)
    draws.load_state_dict(state)
    for step in range(20, 60):
        counts = np.bincount([row.source for row in draws.next_step()], minlength=len(mix.points))
        difference += counts - rows * shares_at(after.points, step)
        assert abs(difference).max() < 2 + 1e-9
    for source, count in enumerate(draws.rows):
        assert draws.state_dict()["next"][source] == count


def test_what_is_left_out_neither_counts_nor_changes_the_mixture():
    mix = Mix((((0, 2.0),), ((0, 1.0),)))
    plain, without = Draws(mix, 6), Draws(mix, 6)
    without.leave_out([((4, 8), (2, 4)), ((8, 9), (0, 0))])
    without.leave_out([((4, 8), (2, 4))])
    assert len(without.left_out) == 2
    state = json.loads(json.dumps(without.state_dict()))
    without = Draws(mix, 6)
    without.load_state_dict(state)
    for _ in range(5):
        ours, theirs = without.next_step(), plain.next_step()
        assert [row.source for row in ours] == [row.source for row in theirs]
        for source, position, _ in ours:
            assert position not in ((4, 5, 6, 7, 8), (2, 3))[source]
    assert without.rows == plain.rows == [20, 10]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three sources of 50, 24 and 9 rows, in several shards."""
    made = []
    for seed, rows in enumerate((50, 24, 9)):
        out = tmp_path_factory.mktemp("mixture") / f"set{seed}"
        task = Rule110(strings=2, width=8, transitions=(1, 2))
        shards.build(task, out, {"train": rows, "test": 4 + seed}, seed=seed, shard_bytes=3000)
        made.append(str(out))
    return made


SCHEDULE = [0.5, [(0, 0.5), (6, 0.1)], [(0, 0.0), (4, 0.0), (8, 0.4)]]


@pytest.fixture
def mixed(folders):
    return Data([Source(path, share) for path, share in zip(folders, SCHEDULE, strict=True)])


def log(data, world, workers, stops=(), steps=14):
    """The global sample log: the row numbers of every step in the order of the global batch, with their sources."""

    def readers(states):
        made = []
        for rank in range(world):
            reader = Reader(
                replace(data, workers=workers), micro=4 // world, accumulation=2, rank=rank, world=world, seed=3
            )
            if states:
                reader.load_state_dict(json.loads(json.dumps(states[0])))
            made.append(reader)
        return made

    now, rows = readers(None), []
    for step in range(steps):
        if step in stops:
            states = [reader.state_dict() for reader in now]
            assert all(state == states[0] for state in states)
            for reader in now:
                reader.close()
            now = readers(states)
        batches = [reader.next_step() for reader in now]
        ranks = [
            [(i, s) for b in rank for i, s in zip(b.ids.tolist(), b.sources.tolist(), strict=True)] for rank in batches
        ]
        rows.append([row for rows_of in zip(*ranks, strict=True) for row in rows_of])
    for reader in now:
        reader.close()
    return rows, now[0]


@pytest.mark.parametrize(("world", "workers", "stops"), [(2, 0, (5,)), (4, 0, (1, 2, 11)), (1, 3, (7,)), (2, 3, ())])
def test_the_order_is_one_for_all_ranks_workers_and_resumes(mixed, world, workers, stops):
    expected, _ = log(mixed, 1, 0)
    found, _ = log(mixed, world, workers, stops)
    assert found == expected


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2, 4]), st.sets(st.integers(1, 13), max_size=4))
def test_the_order_is_one_for_any_pattern_of_resumes(folders, world, stops):
    data = Data([Source(path, share) for path, share in zip(folders, SCHEDULE, strict=True)])
    assert log(data, world, 0, stops)[0] == log(data, 1, 0)[0]


def test_rows_and_epochs_by_source_are_exact(mixed):
    rows, reader = log(mixed, 2, 0)
    bounds = [0, 50, 74, 83]
    for number, source in (pair for step in rows for pair in step):
        assert bounds[source] <= number < bounds[source + 1]
    counts = Counter(source for step in rows for _, source in step)
    seen = reader.seen()
    assert seen["rows_by_source"] == {f"set{i}": counts[i] for i in range(3)} and sum(counts.values()) == 14 * 8
    assert seen["epochs_by_source"] == {f"set{i}": counts[i] / size for i, size in enumerate((50, 24, 9))}
    assert counts[0] > 50 and counts[2] > 9, "some sources are in their second epoch"
    for source, size in enumerate((50, 24, 9)):
        stream = [number for step in rows for number, one in step if one == source]
        for epoch in range(0, len(stream) - size + 1, size):
            assert len(set(stream[epoch : epoch + size])) == size, "an epoch has every row once"


def test_a_source_for_evaluation_only_needs_no_rows(folders, tmp_path):
    shards.build(Rule110(strings=2, width=8, transitions=(1, 2)), tmp_path / "test", {"train": 0, "test": 5}, seed=9)
    sources = [Source(folders[0], 1.0), Source(str(tmp_path / "test"), 0.0), Source(folders[2], 1.0)]
    rows, _ = log(Data(sources), 1, 0)
    assert {source for step in rows for _, source in step} == {0, 2}
    assert all((number < 50) == (source == 0) for step in rows for number, source in step)
    with pytest.raises(UserError, match="the source test has no samples in its train split; give it proportion 0"):
        Reader(Data([sources[0], replace(sources[1], proportion=0.5)]), micro=4)


def test_tokens_are_counted_by_source_and_kept(mixed):
    reader = Reader(mixed, micro=4, seed=3)
    reader.next_step()
    reader.count_tokens([10, 20, 0])
    reader.next_step()
    reader.count_tokens([5, 0, 1])
    other = Reader(mixed, micro=4, seed=3)
    other.load_state_dict(json.loads(json.dumps(reader.state_dict())))
    assert other.seen() == reader.seen() and other.seen()["tokens_by_source"] == {"set0": 15, "set1": 20, "set2": 1}
    reader.close()


def test_proportions_far_apart_are_exact_over_many_rows():
    shares = np.array([0.9, 0.0999, 0.0001])
    mixer = Mixer(Mix(tuple(((0, share),) for share in shares)), 1000)
    counts = Counter(source for _ in range(100) for source in mixer.next_step())
    assert [counts[i] for i in range(3)] == [90_000, 9_990, 10]
