"""Batches: shapes, transfers, fillers of evaluation, and errors where rows contradict the manifest."""

import json
import re
from dataclasses import replace

import pytest
import torch

from sleep_data import shards
from sleep_data.rule110 import Rule110
from sleep_data.task import IGNORED
from sleeptrain.data import Data, Evaluation, Reader, Source, check
from sleeptrain.errors import UserError
from sleeptrain.model import language
from sleeptrain.model.state import Leaf, State


@pytest.fixture
def batch(data):
    return Reader(data, micro=4, seed=0).next_step()[0]


@pytest.fixture
def manifest(data):
    return Reader(data, micro=4, seed=0).manifest


def replaced(tensor, row, column, value):
    changed = tensor.clone()
    changed[row, column] = value
    return changed


def test_the_loss_ignores_the_targets_that_shards_mark_as_not_scored():
    assert language.IGNORED == IGNORED


def test_rows_are_right_padded_if_no_token_comes_after_padding(batch, manifest):
    """Rows without padding have no mask at all."""
    state = State((Leaf("fast", 0, "fast", (), torch.float32, 0, frozenset()),), {"fast": torch.zeros(4)})
    pad, last = manifest.pad, batch.tokens.shape[1] - 1
    at_the_end = replaced(batch.tokens, 1, last, pad)
    for tokens, expected in (
        (batch.tokens, False),
        (at_the_end, True),
        (replaced(at_the_end, 1, last - 1, pad), True),
        (replaced(at_the_end, 1, last - 2, pad), False),
        (replaced(batch.tokens, 0, 0, pad), False),
    ):
        micro = replace(batch, tokens=tokens).micro_batch(state, manifest.windows, pad)
        assert micro.right_padded is expected
        assert (micro.valid is None) is (tokens is batch.tokens)


def test_shapes_device_and_slices(batch, manifest):
    for name in ("tokens", "targets", "groups"):
        tensor = getattr(batch, name)
        assert tensor.shape == (4, 20) and tensor.dtype == torch.int64
    assert batch.rows == 4 and batch.scored == 8
    check(batch, manifest)
    moved = batch.to("meta")
    assert moved.tokens.is_meta and moved.labels["t"].is_meta
    part = batch.slice(1, 3)
    assert part.ids.equal(batch.ids[1:3]) and part.labels["t"].equal(batch.labels["t"][1:3])


def test_target_in_a_window_without_targets(batch, manifest):
    wrong = replace(batch, targets=replaced(batch.targets, 2, 11, 1))
    with pytest.raises(UserError) as caught:
        check(wrong, manifest)
    assert caught.value.errors == [
        f"the data contradicts its manifest: there is a target in a window that the manifest declares to have none (sample "
        f"{int(batch.ids[2])}, position 11, in window 1 of tokens 9 to 17); build the data again"
    ]


@pytest.mark.parametrize(
    ("field", "column", "value", "message"),
    [
        ("tokens", 3, 6, "a token is not one of the 6 ids"),
        ("tokens", 3, -1, "a token is not one of the 6 ids"),
        ("targets", 18, 6, "a target is not one of the 6 ids"),
        ("targets", 18, -1, "a target is not one of the 6 ids"),
        ("tokens", 18, 3, "a target at padding"),
    ],
)
def test_ids_outside_the_vocabulary(batch, manifest, field, column, value, message):
    sample = int(batch.ids[1])
    with pytest.raises(UserError, match=rf"{message}.*\(sample {sample}, position {column}, in window \d of tokens"):
        check(replace(batch, **{field: replaced(getattr(batch, field), 1, column, value)}), manifest)


def test_wrong_length(batch, manifest):
    with pytest.raises(UserError, match="have 19 tokens; the manifest says 20"):
        check(replace(batch, tokens=batch.tokens[:, 1:]), manifest)


class TaskWithWrongTarget(Rule110):
    """A task whose training sample 70 has a target in a window without targets."""

    def generate(self, split, start, stop, seed=0):
        columns = super().generate(split, start, stop, seed)
        if split == "train" and start <= 70 < stop:
            columns["targets"][70 - start, 4] = 1
        return columns


@pytest.mark.parametrize("workers", [0, 1])
def test_error_names_the_shard_and_the_sample_in_it(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(shards, "check_block", lambda *_: None)  # as a writer of shards that does not check
    out = tmp_path / "wrong"
    task = TaskWithWrongTarget(strings=2, width=8, transitions=(1, 2))
    shards.build(task, out, {"train": 100, "test": 21}, 0, shard_bytes=5000)
    sizes = [shard["samples"] for shard in json.loads((out / "train" / "index.json").read_text())["shards"]]
    number = next(i for i in range(len(sizes)) if sum(sizes[: i + 1]) > 70)
    assert number > 0
    shard, sample = out / "train" / f"shard.{number:05}.mds", 70 - sum(sizes[:number])
    message = rf"\({re.escape(str(shard))}, sample {sample} in it, position 4, in window 0 of tokens 0 to 8\)"
    data = Data([Source(str(out))], shuffle=False, workers=workers)
    reader = Reader(data, micro=10)
    for _ in range(7):
        reader.next_step()
    with pytest.raises(UserError, match=message):
        reader.next_step()
    with pytest.raises(UserError, match=message):
        list(Evaluation(data, micro=7, split="train"))


@pytest.mark.parametrize(("micro", "world"), [(4, 1), (4, 2), (7, 3), (21, 1)])
def test_evaluation_reads_every_sample_once(data, micro, world):
    ranks = [Evaluation(data, micro=micro, rank=rank, world=world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    seen, scored = [], 0
    for rank in ranks:
        batches = list(rank)
        assert len(batches) == len(rank)
        for batch in batches:
            assert batch.tokens.shape == (micro, 20)
            real = batch.ids >= 0
            seen += batch.ids[real].tolist()
            scored += batch.scored
            assert (batch.targets[~real] == -100).all() and (batch.groups[~real] == -1).all()
    assert sorted(seen) == list(range(21)) and scored == 42


def test_evaluation_of_the_first_samples(data):
    batches = list(Evaluation(data, micro=4, samples=6))
    assert [row for batch in batches for row in batch.ids.tolist()] == [0, 1, 2, 3, 4, 5, -1, -1]
    assert list(Evaluation(data, micro=4, split="train"))[-1].ids.tolist() == [96, 97, 98, 99]
