"""What evaluation reads from the output projection: losses and likeliest tokens, in tiles of tokens and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 1 << 25
"""Logits of a tile: 128 MiB in float32."""


@dataclass(frozen=True)
class HeadScores:
    """Statistics of the logits of every token over some rows of a vocabulary, each [tokens]; floats are float32 or float64."""

    largest: Tensor
    """The largest logit."""
    likeliest: Tensor
    """Its row in the whole vocabulary, int64; of several the first."""
    exponentials: Tensor
    """The sum of exp(logit - largest)."""
    target: Tensor
    """The logit of the target; 0 where it is not among the rows."""

    @property
    def nll(self) -> Tensor:
        """The negative log likelihoods of the targets in nats; defined where `target` is known."""
        return self.exponentials.log() + self.largest - self.target

    def over_shards(self, reduce: Callable[[Tensor, str], Tensor]) -> HeadScores:
        """Statistics over all shards of the vocabulary. `reduce(tensor, "max" | "sum" | "min")` reduces over them."""
        largest = reduce(self.largest, "max")
        first = self.likeliest.where(self.largest == largest, torch.iinfo(torch.int64).max)
        exponentials = self.exponentials * (self.largest - largest).exp()
        return HeadScores(largest, reduce(first, "min"), reduce(exponentials, "sum"), reduce(self.target, "sum"))


@torch.no_grad()
def head_scores(x: Tensor, weight: Tensor, targets: Tensor, first: int = 0, rows: int | None = None) -> HeadScores:
    """Statistics of the logits x weight^T.

    x         [tokens, width]
    weight    [vocabulary rows, width], in the dtype of x; row i is entry `first + i` of the vocabulary
    targets   [tokens] int64; entries that are not among the rows, such as -100, have the logit 0
    rows      rows that are entries of the vocabulary; the others are padding. None: all
    """
    count = min(max(weight.shape[0] if rows is None else rows, 0), weight.shape[0])
    step = max(1, TILE // weight.shape[0])
    tiles = [
        _tile(x[start : start + step], weight[:count], targets[start : start + step] - first, first)
        for start in range(0, len(x), step)
    ]
    return HeadScores(*(torch.cat([getattr(tile, field.name) for tile in tiles]) for field in fields(HeadScores)))


def _tile(x: Tensor, weight: Tensor, targets: Tensor, first: int) -> HeadScores:
    wide = torch.promote_types(x.dtype, torch.float32)
    if weight.shape[0] == 0:  # a shard of padding only
        lowest, zero = x.new_full(targets.shape, -torch.inf, dtype=wide), x.new_zeros(targets.shape, dtype=wide)
        return HeadScores(lowest, torch.zeros_like(targets), zero, zero)
    logits = F.linear(x, weight).to(wide)
    largest, likeliest = logits.max(-1)
    known = (targets >= 0) & (targets < weight.shape[0])
    target = logits.gather(-1, targets.where(known, 0)[:, None])[:, 0].where(known, 0)
    return HeadScores(largest, likeliest + first, (logits - largest[:, None]).exp().sum(-1), target)
