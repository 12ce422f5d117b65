"""Losses and likeliest tokens in tiles and shards of the vocabulary, against all logits at once."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from sleeptrain.model import scores
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.scores import HeadScores, head_scores
from tests.model import toy
from tests.storages import StorageCounter

VOCAB, TOKENS = 37, 23


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(TOKENS, 8, generator=generator, dtype=dtype)
    weight = torch.randn(VOCAB, 8, generator=generator, dtype=dtype)
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    targets[::5] = -100
    return x, weight, targets


def assert_right(found: HeadScores, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    logits = (x @ weight.t()).double()
    scored = targets >= 0
    expected = -logits.log_softmax(-1)[scored].gather(-1, targets[scored, None])[:, 0]
    torch.testing.assert_close(
        found.nll[scored].double(), expected, rtol=1e-6 if x.dtype == torch.float32 else 1e-12, atol=1e-6
    )
    assert torch.equal(found.likeliest, logits.argmax(-1))


@pytest.mark.parametrize("tile", [1, VOCAB * 7, 1 << 20])
def test_tiles_of_any_size(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(scores, "TILE", tile)
    for dtype in (torch.float64, torch.float32):
        x, weight, targets = problem(dtype)
        assert_right(head_scores(x, weight, targets), x, weight, targets)


@pytest.mark.parametrize("shards", [2, 5, 11])
def test_shards_with_padding_equal_the_whole(shards: int) -> None:
    """Padding rows are large, so that one that is counted shows. With eleven shards the last ones hold nothing else."""
    x, weight, targets = problem()
    rows = -(-VOCAB // shards) + 1
    padded = torch.cat([weight, torch.full((rows * shards - VOCAB, 8), 50.0, dtype=weight.dtype)])
    parts = [
        head_scores(x, padded[rows * i : rows * (i + 1)], targets, rows * i, rows=VOCAB - rows * i)
        for i in range(shards)
    ]

    # With shards as the first dimension, a reduction over them is one over dimension 0.
    stacked = HeadScores(*(torch.stack([getattr(part, f.name) for part in parts]) for f in fields(HeadScores)))
    reductions = {"max": torch.amax, "min": torch.amin, "sum": torch.sum}
    found = stacked.over_shards(lambda t, how: reductions[how](t, 0, keepdim=True).expand_as(t).contiguous())
    for shard in range(shards):
        own = HeadScores(*(getattr(found, f.name)[shard] for f in fields(HeadScores)))
        assert_right(own, x, weight, targets)


def test_several_largest_logits_give_the_first() -> None:
    weight = torch.ones(6, 2)
    found = head_scores(torch.ones(3, 2), weight, torch.tensor([0, 5, -100]))
    assert found.likeliest.tolist() == [0, 0, 0]


def test_the_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "TILE", 1 << 14)
    model = LanguageModel(toy.config(vocab=4096)).double()
    h, targets = torch.randn(2, 64, model.config.width, dtype=torch.float64), torch.zeros(2, 64, dtype=torch.int64)
    with StorageCounter() as counter:
        model.predict(h, targets)
    assert counter.peak < 2 * 64 * 4096 * 8 / 2
