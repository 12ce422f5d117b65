"""The `sleep:` section: windows, passes, what is looped, what is evicted, where gradients stop."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config.errors import Problem

All = Literal["all"]


@dataclass(frozen=True)
class Ramp:
    """A number of passes that grows linearly from `start` to `stop` over the first `steps` steps."""

    start: int
    stop: int
    steps: int


@dataclass(frozen=True)
class Draw:
    """A number of passes drawn uniformly from `low` to `high`, both included, anew at every step."""

    low: int
    high: int


@dataclass(frozen=True)
class Loop:
    """Which blocks are looped, what a pass reads, and which windows sleep."""

    layers: All | tuple[int, ...] = "all"
    """`all`, or `[first, stop]`: blocks first..stop-1 are looped, those before run once a window, those after too."""
    feedback: Literal["raw", "normed", "embeddings"] = "raw"
    """What a pass after the first reads: the last pass's features, those through the final norm, or the tokens again."""
    trigger: Literal["context", "every"] = "context"
    """`context`: windows without targets sleep (arXiv 2605.26099, Algorithm 1). `every`: all but the last of a step."""


@dataclass(frozen=True)
class Evict:
    """What happens to the attention cache when a window is over."""

    mode: Literal["hard", "sliding"] = "hard"
    """`hard`: the cache is cleared. `sliding`: the newest `window - 1` tokens' keys and values stay."""
    conv_carry: bool = True
    """Whether the convolution's tail crosses passes and windows; `false` is the strict "only S crosses"."""


@dataclass(frozen=True)
class Gradient:
    """Where back-propagation is cut."""

    passes: All | int = "all"
    """Only the last k passes of a sleeping window carry gradient; pass 1 keeps the gradient of its own loss."""
    windows: All | int = "all"
    """S (and sliding keys) are detached every K windows."""


@dataclass(frozen=True)
class Sleep:
    """How a model sleeps. One pass always predicts; N passes (the first included) rewrite the fast weights."""

    window: int = 512
    """L, in tokens."""
    passes: int | Ramp | Draw = 1
    """N, all passes over a window, the first one included; N = 1 is the plain hybrid."""
    loop: Loop = field(default_factory=Loop)
    evict: Evict = field(default_factory=Evict)
    gradient: Gradient = field(default_factory=Gradient)

    @property
    def max_passes(self) -> int:
        """The largest N of any step."""
        match self.passes:
            case Ramp(start, stop, _):
                return max(start, stop)
            case Draw(_, high):
                return high
            case int(n):
                return n

    def passes_at(self, step: int, seed: int) -> int:
        """N of a step (0-based). Depends on step and seed alone, so that every rank and every restart agrees."""
        match self.passes:
            case Ramp(start, stop, steps):
                return round(start + (stop - start) * min(1.0, step / max(1, steps)))
            case Draw(low, high):
                return random.Random(f"passes:{seed}:{step}").randint(low, high)
            case int(n):
                return n

    def problems(self) -> list[Problem]:
        """What is wrong with this section by itself."""
        return list(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.window < 1:
            yield Problem("window", "must be at least 1 token")
        match self.passes:
            case Ramp(start, stop, steps) if min(start, stop, steps) < 1:
                yield Problem("passes", "a ramp needs start, stop and steps of at least 1")
            case Draw(low, high) if not 1 <= low <= high:
                yield Problem("passes", "a draw needs 1 <= low <= high")
            case int(n) if n < 1:
                yield Problem("passes", "must be at least 1: the first pass, which predicts, is counted")
        layers = self.loop.layers
        if layers != "all" and (len(layers) != 2 or not 0 <= layers[0] < layers[1]):
            yield Problem("loop.layers", "must be `all` or [first, stop] with 0 <= first < stop")
        yield from self._gradient_problems()

    def _gradient_problems(self) -> Iterator[Problem]:
        k, windows = self.gradient.passes, self.gradient.windows
        if k != "all" and k < 1:
            yield Problem("gradient.passes", "must be `all` or at least 1")
        if windows != "all" and windows < 1:
            yield Problem("gradient.windows", "must be `all` or at least 1")
