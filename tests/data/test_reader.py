"""Steps of training data: the same for any number of ranks and workers, and after any restart."""

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from dataclasses import replace

import pytest

from sleeptrain.config import UserError
from sleeptrain.data import Data, Reader, Source

STEPS = 18  # of 8 rows out of 100: an epoch and a half


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


def stream(data, steps=STEPS, state=None, **arguments):
    reader = Reader(data, seed=5, **{"micro": 4, "accumulation": 2} | arguments)
    if state is not None:
        reader.load_state_dict(state)
    found = [ids(reader.next_step()) for _ in range(steps)]
    reader.close()
    return found


def flat(step):
    return [row for batch in step for row in batch]


def in_processes(data, world, **arguments):
    """The streams of `world` real processes that run at the same time."""
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(world):
        receive, send = context.Pipe(duplex=False)
        work = context.Process(
            target=lambda send=send, rank=rank: send.send(stream(data, rank=rank, world=world, **arguments))
        )
        work.start()
        pipes.append(receive)
        processes.append(work)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def test_epochs_hold_each_sample_once(data):
    steps = stream(data, 24)
    first, second = [flat(step) for step in steps[:12]], [flat(step) for step in steps[12:]]
    for epoch in (first, second):
        rows = [row for step in epoch for row in step]
        assert len(rows) == len(set(rows)) == 96 and set(rows) <= set(range(100))
    assert first != second


def test_without_shuffling_rows_come_as_written(data):
    steps = stream(replace(data, shuffle=False), 13)
    assert [row for step in steps[:12] for row in flat(step)] == list(range(96))
    assert flat(steps[12]) == list(range(8))


def test_rows_are_what_was_written(data, folder):
    from sleep_data.rule110 import Rule110

    reader = Reader(data, micro=8, seed=1)
    written = Rule110(strings=2, width=8, transitions=(1, 2)).generate("train", 0, 100)
    for _ in range(14):
        [batch] = reader.next_step()
        assert batch.tokens.tolist() == written["tokens"][batch.ids].tolist()
        assert batch.targets.tolist() == written["targets"][batch.ids].tolist()
        assert batch.groups.tolist() == written["groups"][batch.ids].tolist()
        assert batch.labels["t"].tolist() == written["label_t"][batch.ids].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_do_not_change_the_order(data, tmp_path, folder, workers):
    expected = [flat(step) for step in stream(data)]
    fresh = tmp_path / "packed"  # not unpacked yet: the processes meet at the same shards
    shutil.copytree(folder, fresh)
    for raw in fresh.rglob("*.mds"):
        raw.unlink()
    copy = Data([Source(str(fresh))], workers=workers)
    for world, micro, accumulation in [(2, 2, 2), (2, 4, 1)]:
        ranks = in_processes(copy, world, micro=micro, accumulation=accumulation)
        for step, rows in enumerate(expected):
            # Micro-batches of all ranks one after another, then the next micro-batches: the order of one process.
            assert [row for part in zip(*(rank[step] for rank in ranks), strict=True) for row in flat(part)] == rows
    unpacked, packed = list((fresh / "train").glob("*.mds")), list((fresh / "train").glob("*.mds.zstd"))
    assert len(unpacked) == len(packed) > 3


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_resume_is_exact_anywhere(data, before, after):
    expected = stream(data)
    reader = Reader(replace(data, workers=before), micro=4, accumulation=2, seed=5)
    states = []
    for step in range(STEPS):
        states.append(json.loads(json.dumps(reader.state_dict())))
        assert ids(reader.next_step()) == expected[step]
    for step in (0, 1, 11, 12, 13):  # 12 begins the second epoch
        assert stream(replace(data, workers=after), 4, states[step]) == expected[step : step + 4]
    reader.close()


def test_resume_on_another_number_of_ranks(data):
    expected = [flat(step) for step in stream(data)]
    reader = Reader(data, micro=4, accumulation=2, seed=5)
    for _ in range(7):
        reader.next_step()
    state = reader.state_dict()
    ranks = [stream(data, 6, state, micro=2, accumulation=1, rank=rank, world=4) for rank in range(4)]
    assert [[row for rank in ranks for row in flat(rank[step])] for step in range(6)] == expected[7:13]


def test_skipping_is_reading_without_looking(data):
    expected = stream(data)
    reader = Reader(data, micro=4, accumulation=2, seed=5)
    reader.next_step()
    reader.skip(13)
    assert reader.epoch == 1 and ids(reader.next_step()) == expected[14]


def test_state_of_other_data_or_another_seed_is_refused(data, other):
    state = Reader(data, micro=4, seed=5).state_dict()
    with pytest.raises(UserError, match="another seed"):
        Reader(data, micro=4, seed=6).load_state_dict(state)
    with pytest.raises(UserError, match="other data"):
        Reader(Data([Source(str(other))]), micro=4, seed=5).load_state_dict(state)


def test_a_step_larger_than_the_data(data):
    with pytest.raises(
        UserError, match=r"100 samples, fewer than one step's 128 \(16 rows x 4 micro-batches x 2 ranks\)"
    ):
        Reader(data, micro=16, accumulation=4, world=2)


def test_mixing_two_sources(folder, other):
    mixed = Data([Source(str(folder), 1.0), Source(str(other), 3.0)])
    reader = Reader(mixed, micro=8, seed=0)
    assert reader.samples_per_epoch == 160 and reader.manifest.samples("train") == 160
    rows = [row for _ in range(20) for row in flat(ids(reader.next_step()))]
    assert sum(row < 100 for row in rows) == 40 and set(rows) <= set(range(160))
    plain = Data([Source(str(folder)), Source(str(other))])
    reader = Reader(plain, micro=8, seed=0)
    assert sorted(row for _ in range(20) for row in flat(ids(reader.next_step()))) == list(range(160))


def test_spawned_workers_open_the_data_themselves(data):
    reader = Reader(data, micro=4, accumulation=2, seed=5)
    reader.next_step()
    copy = pickle.loads(pickle.dumps(reader._rows))
    assert [part["row"].tolist() for part in itertools.islice(copy, 6)] == [p for step in stream(data, 3) for p in step]


def children():
    me = os.getpid()
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and f"\nPPid:\t{me}\n" in open(f"/proc/{entry}/status").read()
    ]


def test_workers_outlive_a_signal_to_all_processes(data):
    before = set(children())
    reader = Reader(replace(data, workers=2), micro=4, accumulation=2, seed=5)
    found = [ids(reader.next_step())]
    workers = set(children()) - before
    assert len(workers) >= 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    found += [ids(reader.next_step()) for _ in range(STEPS - 1)]
    assert found == stream(data)
    reader.close()
    assert not set(children()) & workers


def test_nothing_is_left_in_shared_memory(data):
    before = set(os.listdir("/dev/shm"))
    stream(replace(data, workers=2), 3)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "locals" in name or "epoch" in name}
