"""Rows of text that a reader cuts from blocks: every token once an epoch, whatever the row, the ranks and the workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sleeptrain.data import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.reader import Reader
from sleeptrain.errors import UserError
from tests.data.texts import build_text

BOS, PAD = 256, 257


@pytest.fixture(scope="module")
def documents() -> list[bytes]:
    random = np.random.default_rng(0)
    return [bytes(random.integers(97, 110, size=random.integers(1, 60)).tolist()) for _ in range(80)]


@pytest.fixture(scope="module")
def text(documents, tmp_path_factory) -> Data:
    """Text in several shards of several blocks."""
    return Data([Source(build_text(tmp_path_factory.mktemp("text"), documents))])


def in_order(data, row, window, split="train"):
    """All rows in the order of the shards: tokens, targets and starts."""
    batches = list(Evaluation(replace(data, row=row), micro=1, split=split, window=window))
    return [torch.cat([getattr(b, name) for b in batches]) for name in ("tokens", "targets", "starts")]


@pytest.mark.parametrize("row, window", [(96, 12), (48, 16), (12, 12), (4, 2)])
def test_one_build_serves_every_row_and_window(text, documents, row, window):
    tokens, targets, starts = in_order(text, row, window)
    real = tokens.flatten() != PAD
    stream = tokens.flatten()[real].tolist()
    pieces = "".join(chr(t) for t in stream).split(chr(BOS))[1:]
    train = [piece.encode() for piece in pieces]
    assert set(train) <= set(documents) and len(train) > 60
    assert tokens.shape[1] == row and not bool(real[real.nonzero().max() + 1 :].any())
    assert int(starts.sum()) == len(train) and bool((tokens[starts] == BOS).all())
    scored = targets.flatten() != -100
    assert int(scored.sum()) == sum(map(len, train)), "every token but the last of a document has a target"
    following = torch.tensor([*stream[1:], -100])
    assert bool((targets.flatten()[: len(stream)] == following).logical_or(~scored[: len(stream)]).all())


def test_an_epoch_has_every_row_once_for_every_number_of_ranks_and_workers(text):
    data = replace(text, row=24)
    rows = {tuple(row) for row in in_order(text, 24, 12)[0].tolist()}
    orders = []
    for world, workers in ((1, 0), (2, 0), (4, 2)):
        readers = [
            Reader(replace(data, workers=workers), micro=4 // world, rank=rank, world=world, seed=3, window=12)
            for rank in range(world)
        ]
        steps = readers[0].samples_per_epoch // 4
        read = [[reader.next_step()[0] for reader in readers] for _ in range(steps)]
        order = [batch.ids[i // world].item() for batches in read for i in range(4) for batch in [batches[i % world]]]
        assert len(set(order)) == len(order) == 4 * steps
        assert {tuple(row) for batches in read for batch in batches for row in batch.tokens.tolist()} <= rows
        orders.append(order)
        for reader in readers:
            reader.close()
    assert orders[0] == orders[1] == orders[2] and orders[0] != sorted(orders[0])


def test_rows_that_cannot_be_cut_are_refused(text):
    with pytest.raises(
        UserError, match=r"a row of 20 tokens \(data\.row\) must hold whole windows of 5 tokens .*blocks of 96"
    ):
        Reader(replace(text, row=20), micro=1, window=5)
    with pytest.raises(
        UserError, match=r"a row of 128 tokens \(data\.row, 8 windows by default\).*possible are 16, 32, 48, 96"
    ):
        Reader(text, micro=1, window=16)
