"""How the next token is chosen from logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; otherwise sample among the `top_k` likeliest (0: all) and the likeliest that together
    hold `top_p` of the probability (arXiv 1904.09751), from a generator seeded by `seed`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")

    def picker(self) -> Callable[[Tensor], Tensor]:
        """A function from logits [batch, vocab] to tokens [batch], with its own generator."""
        if self.temperature == 0:
            return lambda logits: logits.argmax(-1)
        generator: dict[torch.device, torch.Generator] = {}

        def pick(logits: Tensor) -> Tensor:
            chances = self.chances(logits)
            if logits.device not in generator:
                generator[logits.device] = torch.Generator(logits.device).manual_seed(self.seed)
            return torch.multinomial(chances, 1, generator=generator[logits.device])[:, 0]

        return pick

    def chances(self, logits: Tensor) -> Tensor:
        """Probabilities [batch, vocab] that sampling draws from."""
        logits = logits / max(self.temperature, 1e-8)
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], float("-inf"))
        chances = logits.softmax(-1)
        ordered, order = chances.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= self.top_p
        chances = chances.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
        return chances / chances.sum(-1, keepdim=True)


GREEDY = Sampling()
"""Always the likeliest token."""
