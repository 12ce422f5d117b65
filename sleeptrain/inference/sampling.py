"""Sampling of the next token from logits: greedy, temperature, top-k, top-p and min-p."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Sampling options.

    Temperature 0 is greedy. Otherwise tokens are drawn from the `top_k` likeliest (0: all), restricted to the likeliest
    whose probabilities sum to `top_p` (arXiv 1904.09751), and to those with at least `min_p` times the probability of the
    likeliest (arXiv 2407.01082), with a generator seeded by `seed`. Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise ValueError(f"{self}: needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1")

    def sampler(self) -> Callable[[Tensor], Tensor]:
        """A function from logits [batch, vocab] to tokens [batch] with its own random generator."""
        if self.temperature == 0:
            return lambda logits: logits.argmax(-1)
        generator: dict[torch.device, torch.Generator] = {}

        def sample(logits: Tensor) -> Tensor:
            probabilities = self.probabilities(logits)
            if logits.device not in generator:
                generator[logits.device] = torch.Generator(logits.device).manual_seed(self.seed)
            return torch.multinomial(probabilities, 1, generator=generator[logits.device])[:, 0]

        return sample

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities [batch, vocab] from which sampling draws."""
        logits = logits / max(self.temperature, 1e-8)
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], float("-inf"))
        probabilities = logits.softmax(-1)
        ordered, order = probabilities.sort(-1, descending=True)
        outside = (ordered.cumsum(-1) - ordered >= self.top_p) | (ordered < self.min_p * ordered[..., :1])
        probabilities = probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
        return probabilities / probabilities.sum(-1, keepdim=True)


GREEDY = Sampling()
"""The likeliest token, without randomness."""
