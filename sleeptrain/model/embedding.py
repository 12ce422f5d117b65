"""The token embedding and the language model head, which may be one matrix."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sleep_kernels import linear_cross_entropy
from sleeptrain.model.scores import head_scores

IGNORED = -100
"""The target of positions that are not scored."""


class Embedding(nn.Embedding):
    """Token embedding, which is also the head of a tied model.

    Both uses go through `forward`, because ZeRO-3 gathers a parameter in the forward hooks of its module.
    """

    def reset_parameters(self) -> None:
        """Nothing: `init.py` draws the values. On the meta device torch's own import torch._dynamo, a second at every start."""

    def forward(
        self, x: Tensor, targets: Tensor | None = None, known: Tensor | None = None, *, as_head: bool = False,
        scores: bool = False, z_loss: float = 0.0,
    ) -> Any:  # fmt: skip
        """Tokens [...] -> features [..., width]; with `as_head` the same as `Head.forward` of features."""
        return _head(x, self.weight, targets, known, scores, z_loss) if as_head else super().forward(x)


class Head(nn.Linear):
    """The language model head without bias: features to logits, or to the losses of targets."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__(width, vocab, bias=False)

    def forward(
        self, x: Tensor, targets: Tensor | None = None, known: Tensor | None = None, *, scores: bool = False, z_loss: float = 0.0
    ) -> Any:  # fmt: skip
        """Features [..., width] -> logits [..., vocab], or with targets [...] their losses [...] (see `LanguageModel.nll`), or
        with `scores` the `HeadScores` of [tokens, width]."""
        return _head(x, self.weight, targets, known, scores, z_loss)


def _head(x: Tensor, weight: Tensor, targets: Tensor | None, known: Tensor | None, scores: bool, z_loss: float) -> Any:
    if targets is None:
        return F.linear(x, weight)
    if scores:
        return head_scores(x, weight, targets)
    return linear_cross_entropy(x, weight, targets, known=known, ignored=IGNORED, z_loss=z_loss)
