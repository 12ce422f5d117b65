"""Training batches: equal for any number of ranks and workers, and after any restart."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from sleep_data import shards
from sleep_data.rule110 import Rule110
from sleeptrain.data import Data, Reader, Source
from sleeptrain.errors import UserError
from tests.cli.programs import children

TASK = Rule110(strings=2, width=8, transitions=(1, 2))
STEPS = 18  # of 8 rows out of 100: an epoch and a half


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def stream(data, steps=STEPS, state=None, **arguments):
    reader = Reader(data, seed=5, **{"micro": 4, "accumulation": 2} | arguments)
    if state is not None:
        reader.load_state_dict(state)
    steps_read = [ids(reader.next_step()) for _ in range(steps)]
    reader.close()
    return steps_read


def flat(step):
    return [row for batch in step for row in batch]


def interleaved(ranks):
    """The rows of a global batch: row i is on rank i % world."""
    return [row for rows in zip(*map(flat, ranks), strict=True) for row in rows]


def in_processes(data, world, **arguments):
    """The steps that each of `world` processes reads, all at the same time."""
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(world):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=lambda send=send, rank=rank: send.send(stream(data, rank=rank, world=world, **arguments))
        )
        process.start()
        pipes.append(receive)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def test_an_epoch_has_each_sample_once(data):
    rows = [row for step in stream(data, 25) for row in flat(step)]
    first, second = rows[:100], rows[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_without_shuffling_rows_are_in_the_order_of_writing(data):
    steps = stream(replace(data, shuffle=False), 25)
    assert [row for step in steps for row in flat(step)] == [*range(100), *range(100)]


def test_rows_are_equal_to_the_written_samples(data, folder):
    reader = Reader(data, micro=8, seed=1)
    written = TASK.generate("train", 0, 100)
    for _ in range(14):
        [batch] = reader.next_step()
        assert batch.tokens.tolist() == written["tokens"][batch.ids].tolist()
        assert batch.targets.tolist() == written["targets"][batch.ids].tolist()
        assert batch.groups.tolist() == written["groups"][batch.ids].tolist()
        assert batch.labels["t"].tolist() == written["label_t"][batch.ids].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_do_not_change_the_order(data, tmp_path, folder, workers):
    expected = [flat(step) for step in stream(data)]
    fresh = tmp_path / "compressed"  # not decompressed yet: the processes prepare the same shards at the same time
    shutil.copytree(folder, fresh)
    for raw in fresh.rglob("*.mds"):
        raw.unlink()
    copy = Data([Source(str(fresh))], workers=workers)
    for world, micro, accumulation in [(1, 8, 1), (2, 2, 2), (2, 4, 1), (4, 1, 2)]:
        ranks = in_processes(copy, world, micro=micro, accumulation=accumulation)
        for step, rows in enumerate(expected):
            assert interleaved(rank[step] for rank in ranks) == rows
    decompressed, compressed = list((fresh / "train").glob("*.mds")), list((fresh / "train").glob("*.mds.zstd"))
    assert len(decompressed) == len(compressed) > 3


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_resume_is_exact_at_any_step(data, before, after):
    expected = stream(data)
    reader = Reader(replace(data, workers=before), micro=4, accumulation=2, seed=5)
    states = []
    for step in range(STEPS):
        states.append(json.loads(json.dumps(reader.state_dict())))
        assert ids(reader.next_step()) == expected[step]
    for step in (0, 1, 11, 12, 13):  # step 12 has rows of two epochs
        assert stream(replace(data, workers=after), 4, states[step]) == expected[step : step + 4]
    reader.close()


def test_resume_on_another_number_of_ranks(data):
    expected = [flat(step) for step in stream(data)]
    reader = Reader(data, micro=4, accumulation=2, seed=5)
    for _ in range(7):
        reader.next_step()
    state = reader.state_dict()
    ranks = [stream(data, 6, state, micro=2, accumulation=1, rank=rank, world=4) for rank in range(4)]
    assert [interleaved(rank[step] for rank in ranks) for step in range(6)] == expected[7:13]


def test_state_of_other_data_or_another_seed_is_refused(data, other):
    state = Reader(data, micro=4, seed=5).state_dict()
    with pytest.raises(UserError, match="another seed"):
        Reader(data, micro=4, seed=6).load_state_dict(state)
    with pytest.raises(UserError, match=r"another version of the data's order \(version 1, now 2\)"):
        Reader(data, micro=4, seed=5).load_state_dict({"version": 1, "epoch": 0, "sample": 0, "seed": 5})
    with pytest.raises(UserError, match="other data"):
        Reader(Data([Source(str(other))]), micro=4, seed=5).load_state_dict(state)


def test_step_larger_than_the_data(data):
    with pytest.raises(
        UserError, match=r"100 samples, fewer than one step's 128 \(16 rows x 4 micro-batches x 2 ranks\)"
    ):
        Reader(data, micro=16, accumulation=4, world=2)


def test_rows_are_shuffled_and_epochs_differ(tmp_path):
    shards.build(TASK, tmp_path / "d", {"train": 1000}, seed=0, shard_bytes=20_000)
    assert len(list((tmp_path / "d" / "train").glob("*.zstd"))) > 8

    def epochs(seed):
        reader = Reader(Data([Source(str(tmp_path / "d"))]), micro=100, seed=seed)
        orders = [np.concatenate([np.array(flat(ids(reader.next_step()))) for _ in range(10)]) for _ in range(3)]
        reader.close()
        return orders

    first, second, third = epochs(1)
    for rows in (first, second, third):  # no correlation with the order of writing, nor between neighbours
        assert sorted(rows) == list(range(1000))
        assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.15
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.15
    for order in (second, third, epochs(7)[0]):
        assert (first == order).mean() < 0.02


def test_neighbouring_seeds_do_not_share_epochs(other):
    def epochs(seed):
        reader = Reader(Data([Source(str(other))]), micro=60, seed=seed)  # one shard
        return [flat(ids(reader.next_step())) for _ in range(3)]

    orders = epochs(0) + epochs(1) + epochs(2)
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_an_earlier_state(data, workers):
    reader = Reader(replace(data, workers=workers), micro=8, seed=5)
    expected, states = [], []
    for _ in range(15):
        states.append(reader.state_dict())
        expected.append(ids(reader.next_step()))
    reader.load_state_dict(states[3])
    assert [ids(reader.next_step()) for _ in range(12)] == expected[3:]
    reader.close()


def test_two_sources_without_proportions(folder, other):
    rows = [row for step in stream(Data([Source(str(folder)), Source(str(other))]), 40) for row in flat(step)]
    for epoch in (rows[:160], rows[160:]):
        assert sorted(epoch) == list(range(160))
        assert all(abs(sum(row < 100 for row in epoch[:n]) - n * 100 / 160) < 1 for n in range(160)), "mixed evenly"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_other_start_methods(data, method):
    """Spawned workers import all modules again, and attach to the shared memory of the library."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        steps = stream(replace(data, workers=1), 13)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert steps == stream(data, 13)


def test_workers_continue_after_sigterm(data):
    before = set(children(os.getpid()))
    reader = Reader(replace(data, workers=2), micro=4, accumulation=2, seed=5)
    steps = [ids(reader.next_step())]
    workers = set(children(os.getpid())) - before
    assert len(workers) >= 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    steps += [ids(reader.next_step()) for _ in range(STEPS - 1)]
    assert steps == stream(data)
    reader.close()
    assert not set(children(os.getpid())) & workers
