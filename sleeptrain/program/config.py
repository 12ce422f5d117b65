"""The `sleep:` section: windows, passes, looped blocks, cache eviction, gradient truncation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, reduce
from typing import Literal, get_args, get_origin, get_type_hints

from sleeptrain.config import Problem

All = Literal["all"]
MOST_PASSES = 1000
"""Largest number of passes. Every pass of a window is an action of the schedule, which is planned and checked before the start."""


@dataclass(frozen=True)
class Ramp:
    """A number of passes that grows linearly from `start` to `stop` over the first `steps` steps."""

    start: int
    """N of the first step."""
    stop: int
    """N from step `steps` on."""
    steps: int
    """Length of the ramp."""


@dataclass(frozen=True)
class Draw:
    """A number of passes drawn at every step, uniformly from `low` to `high` (both included)."""

    low: int
    """Smallest N."""
    high: int
    """Largest N, with which evaluation and generation sleep."""


@dataclass(frozen=True)
class Loop:
    """Looped blocks, input of passes 2..N, and which windows sleep."""

    layers: All | tuple[int, ...] = "all"
    """`all`, or `[first, stop]`: blocks first..stop-1 are looped; blocks before and after them run once per window."""
    feedback: Literal["raw", "normed", "embeddings", "gated"] = "raw"
    """Input of passes 2..N: features of the previous pass, these features through the final norm, the embeddings, or the
    embeddings plus a learned multiple, 0 at the start, of the features."""
    trigger: Literal["context", "every"] = "context"
    """`context`: windows without targets sleep (arXiv 2605.26099, Algorithm 1). `every`: all but the last of a step."""


@dataclass(frozen=True)
class Evict:
    """Eviction of the attention cache at the end of a window."""

    mode: Literal["hard", "sliding"] = "hard"
    """`hard` clears the cache. `sliding` keeps the keys and values of the newest `window - 1` tokens."""
    conv_carry: bool = True
    """Whether the convolution tail is carried across passes and windows; with `false` only S is carried."""


@dataclass(frozen=True)
class Gradient:
    """Truncation of back-propagation."""

    passes: All | int = "all"
    """Only the last k passes of a sleeping window have a backward; pass 1 keeps the gradient of its own loss."""
    windows: All | int = "all"
    """S (and the attention cache under sliding eviction) is detached every K windows."""
    clip_state: float | None = None
    """Largest norm of the gradient of S between windows, by row, layer and head; the unit is the gradient of the row's mean
    loss. null: no clipping. Where it clips, the gradient is no longer that of the loss."""


@dataclass(frozen=True)
class Sleep:
    """How a model sleeps: N passes over a window rewrite the fast weights; predicting a token takes one pass."""

    window: int = 512
    """Window length L in tokens."""
    passes: int | Ramp | Draw = 1
    """Number of passes N over a sleeping window, including the first; N = 1 is the plain hybrid model."""
    loop: Loop = field(default_factory=Loop)
    evict: Evict = field(default_factory=Evict)
    gradient: Gradient = field(default_factory=Gradient)

    @property
    def gated(self) -> bool:
        """Whether passes 2..N read gated features, for which the model has weights."""
        return self.loop.feedback == "gated"

    @property
    def max_passes(self) -> int:
        """Largest N over all steps."""
        match self.passes:
            case Ramp(start, stop, _):
                return max(start, stop)
            case Draw(_, high):
                return high
            case int(n):
                return n

    def passes_at(self, step: int, seed: int) -> int:
        """N of a step (0-based). Depends on step and seed only, so that all ranks and restarts agree."""
        match self.passes:
            case Ramp(start, stop, steps):
                return round(start + (stop - start) * min(1.0, step / max(1, steps)))
            case Draw(low, high):
                return random.Random(f"passes:{seed}:{step}").randint(low, high)
            case int(n):
                return n

    def shares_of_passes(self, steps: int) -> dict[int, float]:
        """The share of the steps of a run that have each N; of a draw the expected one."""
        match self.passes:
            case Ramp(_, stop, length):
                growing = Counter(self.passes_at(step, 0) for step in range(min(steps, length)))
                growing[stop] += max(0, steps - length)
                return {n: count / steps for n, count in sorted(growing.items()) if count}
            case Draw(low, high):
                return {n: 1 / (high - low + 1) for n in range(low, high + 1)}
            case int(n):
                return {n: 1.0}

    def problems(self) -> list[Problem]:
        """Errors in this section alone, each with the field it belongs to."""
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
                yield Problem("passes", "must be at least 1; the first pass is counted")
        if self.max_passes > MOST_PASSES:
            yield Problem("passes", f"must be at most {MOST_PASSES:,} passes over a window")
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
        if self.gradient.clip_state is not None and self.gradient.clip_state <= 0:
            yield Problem("gradient.clip_state", "must be above 0, or null for no clipping")


def check_sleep(sleep: Sleep, depth: int) -> None:
    """Raise ValueError with every value that is wrong for a stack of `depth` blocks.

    Recipes are checked when they are read. A Sleep that was made in Python is not, and a misspelt word would mean another one.
    """
    wrong = [
        f"sleep.{problem.field} = {reduce(getattr, problem.field.split('.'), sleep)!r}: {problem.message}"
        for problem in sleep.problems()
    ]
    for section in ("loop", "evict"):
        for name, words in _words(section).items():
            if (value := getattr(getattr(sleep, section), name)) not in words:
                wrong.append(f"sleep.{section}.{name} = {value!r}: must be one of {', '.join(words)}")
    if not wrong and sleep.loop.layers != "all" and sleep.loop.layers[1] > depth:
        wrong.append(f"sleep.loop.layers = {list(sleep.loop.layers)}: the model has {depth} blocks")
    if wrong:
        raise ValueError("; ".join(wrong))


@cache
def _words(section: str) -> dict[str, tuple[str, ...]]:
    """The words that the fields of a section may be, by field, for those that are one of several words."""
    hints = get_type_hints({"loop": Loop, "evict": Evict}[section])
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
