"""A budget of real tokens in steps: how many steps the sources of a run need to give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from sleeptrain.data.mixture import Mix


@dataclass(frozen=True)
class SourceSize:
    """The split of a source that a run reads."""

    rows: int
    tokens: int
    """Real tokens of all rows, without padding."""


def steps_of_budget(tokens: int, mix: Mix, sizes: Sequence[SourceSize], rows: int) -> int:
    """The first step at which steps of `rows` rows are expected to have had `tokens` real tokens.

    Expected is the mean row of each source, in the proportions of the mix. So the number of steps, on which learning rates depend, is
    known before the first step, equal on all ranks, and the same when a run is continued. Over whole epochs it is exact.
    """
    means = [Fraction(size.tokens, max(1, size.rows)) for size in sizes]

    def expected(step: int) -> Fraction:
        mixed = sum((mean * share for mean, share in zip(means, mix.shares(step), strict=True)), Fraction())
        return rows * mixed / mix.unit

    step, seen = 0, 0.0
    while step < mix.last:  # proportions change with every step
        if seen >= tokens:
            return step
        seen, step = seen + float(expected(step)), step + 1
    return step + max(0, ceil((tokens - Fraction(seen)) / expected(step)))


def epochs_of_run(steps: int, mix: Mix, sizes: Sequence[SourceSize], rows: int) -> list[float]:
    """How often `steps` steps of `rows` rows read each source, in its share of all rows; 0 for one without rows."""
    changing = min(steps, mix.last)
    parts = [0] * len(sizes)
    for step in range(changing):
        parts = [part + share for part, share in zip(parts, mix.shares(step), strict=True)]
    parts = [part + share * (steps - changing) for part, share in zip(parts, mix.shares(mix.last), strict=True)]
    return [part * rows / mix.unit / size.rows if size.rows else 0.0 for part, size in zip(parts, sizes, strict=True)]
