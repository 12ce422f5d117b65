"""Batches: what they hold, and what happens when they contradict the manifest."""

from dataclasses import replace

import pytest
import torch

from sleeptrain.config import UserError
from sleeptrain.data import Evaluation, Reader, check


@pytest.fixture
def batch(data):
    return Reader(data, micro=4, seed=0).next_step()[0]


@pytest.fixture
def manifest(data):
    return Reader(data, micro=4, seed=0).manifest


def put(tensor, row, column, value):
    changed = tensor.clone()
    changed[row, column] = value
    return changed


def test_shapes_and_moves(batch, manifest):
    for name in ("tokens", "targets", "groups"):
        tensor = getattr(batch, name)
        assert tensor.shape == (4, 20) and tensor.dtype == torch.int64
    assert batch.rows == 4 and batch.scored == 8
    check(batch, manifest)
    moved = batch.to("meta")
    assert moved.tokens.is_meta and moved.labels["t"].is_meta
    part = batch.slice(1, 3)
    assert part.ids.equal(batch.ids[1:3]) and part.labels["t"].equal(batch.labels["t"][1:3])


def test_a_target_where_there_should_be_none(batch, manifest):
    wrong = replace(batch, targets=put(batch.targets, 2, 11, 1))
    said = rf"window 1, tokens 9 to 17.*row 2 of the batch \(id {int(batch.ids[2])}\), position 11"
    with pytest.raises(UserError, match=said):
        check(wrong, manifest)


@pytest.mark.parametrize(
    ("field", "column", "value", "said"),
    [
        ("tokens", 3, 6, "a token is not among 6 ids"),
        ("tokens", 3, -1, "a token is not among 6 ids"),
        ("targets", 18, 6, "a target is not among 6 ids"),
        ("targets", 18, -1, "a target is not among 6 ids"),
        ("tokens", 18, 3, "a target at padding"),
    ],
)
def test_strange_ids(batch, manifest, field, column, value, said):
    with pytest.raises(UserError, match=f"{said}.*row 1 .*position {column}"):
        check(replace(batch, **{field: put(getattr(batch, field), 1, column, value)}), manifest)


def test_another_length(batch, manifest):
    with pytest.raises(UserError, match="have 19 tokens; the manifest says 20"):
        check(replace(batch, tokens=batch.tokens[:, 1:]), manifest)


@pytest.mark.parametrize(("micro", "world"), [(4, 1), (4, 2), (7, 3), (21, 1)])
def test_evaluation_sees_every_sample_once(data, micro, world):
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


def test_evaluation_of_some(data):
    batches = list(Evaluation(data, micro=4, samples=6))
    assert [row for batch in batches for row in batch.ids.tolist()] == [0, 1, 2, 3, 4, 5, -1, -1]
    assert list(Evaluation(data, micro=4, split="train"))[-1].ids.tolist() == [96, 97, 98, 99]
