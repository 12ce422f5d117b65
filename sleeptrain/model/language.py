"""The language model: embedding, stack, final norm and head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_kernels import linear_cross_entropy
from sleeptrain.model.config import Model
from sleeptrain.model.norm import RMSNorm
from sleeptrain.model.stack import Stack
from sleeptrain.model.state import State, leaves
from sleeptrain.program import Sleep

IGNORED = -100


class Embedding(nn.Embedding):
    """A vector for each token, and back: the same matrix is the head of a tied model.

    Both go through `forward`, so that whoever brings the matrix here when it is used, as ZeRO 3 does, sees both.
    """

    def forward(
        self, x: Tensor, targets: Tensor | None = None, known: Tensor | None = None, *, back: bool = False
    ) -> Tensor:
        """Tokens [...] -> features [..., width]; with `back`, what a `Head` makes of features."""
        return _head(x, self.weight, targets, known) if back else super().forward(x)


class Head(nn.Linear):
    """From features to the logits of all tokens, or to the losses of targets; without bias."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__(width, vocab, bias=False)

    def forward(self, x: Tensor, targets: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Features [..., width] -> logits [..., vocab]; with targets [...] their losses (see `LanguageModel.nll`)."""
        return _head(x, self.weight, targets, known)


class LanguageModel(nn.Module):
    """Embedding, blocks, final norm and head; `config.vocab` must be set. Parameters are empty until `initialise`."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        if config.vocab is None:
            raise ValueError("model.vocab is null; take it from the data's manifest before building the model")
        self.config = config
        self.embed = Embedding(config.vocab, config.width)
        self.layers = Stack(config)
        self.norm = RMSNorm(config.width, config.eps)
        self.head = None if config.tie else Head(config.width, config.vocab)
        self.here = (0, len(self.layers))
        """First and one-past-last of the blocks that are here."""
        self.slices = 1
        """Into how many slices of tokens the features of a window are cut between blocks, of which one is here."""

    def zero_state(self, sleep: Sleep, batch: int) -> State:
        """The state before the first token of the blocks that are here, on the model's device and in its dtype."""
        weight, (first, stop) = next(self.parameters()), self.here
        spec = [leaf for leaf in leaves(self.config, sleep, weight.dtype) if first <= leaf.layer < stop]
        return State.zeros(spec, batch, weight.device)

    def keep(self, first: int, stop: int) -> None:
        """Become one stage of a pipeline: keep blocks first..stop-1 under their names, the embedding on the first stage,
        the final norm and the head (which a tied head shares with the embedding) on the last one."""
        depth = len(self.layers)
        for i in [*range(first), *range(stop, depth)]:
            self.layers[i] = nn.Identity()
        self.here = (first, stop)
        if first > 0 and not (self.config.tie and stop == depth):
            del self.embed
        if stop < depth:
            del self.norm, self.head

    def logits(self, h: Tensor) -> Tensor:
        """Features at the exit of the stack [batch, time, width] -> logits [batch, time, vocab] in float32 (or 64)."""
        x = self.norm(h)
        x = self.embed(x, back=True) if self.head is None else self.head(x)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def nll(self, h: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Features at the exit of the stack -> negative log likelihood in nats of each target, 0 where it is -100.

        Logits of all tokens never exist at once, unless they are few. `known`: what this gave before for the same features,
        where only its gradient is wanted now.
        """
        x = self.norm(h)
        return self.embed(x, targets, known, back=True) if self.head is None else self.head(x, targets, known)

    def relative_change(self, h: Tensor, before: Tensor) -> Tensor:
        """The relative change of the features of a window by a pass, ||h - before|| / ||before||, a float32 scalar."""
        return (h - before).float().norm() / before.float().norm().clamp_min(1e-12)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of each target [batch, time] in nats, 0 where the target is -100."""
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)


def _head(x: Tensor, weight: Tensor, targets: Tensor | None, known: Tensor | None) -> Tensor:
    if targets is None:
        return F.linear(x, weight)
    return linear_cross_entropy(x, weight, targets, known=known, ignored=IGNORED)
