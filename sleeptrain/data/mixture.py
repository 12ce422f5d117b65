"""From which source each row of a step comes: proportions by step, and exact counts of the rows that they give each source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sleeptrain.config import Problem

Points = tuple[tuple[int, float], ...]
"""Steps, from 0 on and ascending, and a proportion at each; linear between them, constant before the first and after the last."""
RESOLUTION = 1 << 44
"""Parts into which a row is divided: shares are whole numbers of them, so that sums over a run are exact."""
KEPT = 10_000
"""Steps ahead for which shares are kept that were computed to find when a source's next row is due."""


@dataclass(frozen=True)
class Mix:
    """Shares of the sources in the rows of each step."""

    points: tuple[Points, ...]
    """Relative proportions of each source."""
    unit: int = RESOLUTION
    """Sum of the shares of all sources in one row."""

    @classmethod
    def by_size(cls, rows: Sequence[int]) -> Mix:
        """Shares as the numbers of rows: all sources end an epoch of theirs in the same row of the run."""
        return cls(tuple(((0, count),) for count in rows), sum(rows))

    @property
    def last(self) -> int:
        """The step from which on shares are constant."""
        return max(points[-1][0] for points in self.points)

    def constant_until(self, step: int) -> float:
        """The last step up to which all shares are those of `step`; infinity where they no longer change."""
        return min(_constant_until(points, step) for points in self.points)

    def last_of(self, source: int) -> float:
        """The step from which on a source has no share; infinity where it has one at the end."""
        points = self.points[source]
        positive = max((number for number, (_, share) in enumerate(points) if share), default=-1)
        return -1 if positive < 0 else math.inf if positive == len(points) - 1 else points[positive + 1][0]

    def proportions(self, step: int) -> list[float]:
        """Relative proportions at a step (0-based)."""
        return [_interpolate(points, step) for points in self.points]

    def shares(self, step: int) -> tuple[int, ...]:
        """Parts of `unit` that each source has in a row of a step (0-based); 0 exactly where its proportion is 0."""
        proportions = self.proportions(step)
        total = sum(proportions)
        shares = [int(self.unit * proportion // total) for proportion in proportions]  # exact for whole numbers
        largest = proportions.index(max(proportions))
        shares[largest] += self.unit - sum(shares)
        return tuple(shares)

    def converted(self, credits: Sequence[int], unit: int) -> list[int]:
        """The credits of sources, whose sum is 0, from parts of another `unit` into those of this mix."""
        found = [credit * self.unit // unit for credit in credits]
        found[0] -= sum(found)
        return found

    def zero_step(self) -> int | None:
        """The first step at which all proportions are 0; None if there is none."""
        steps = sorted({step for points in self.points for step, _ in points})
        return next((step for step in steps if not any(self.proportions(step))), None)


def _interpolate(points: Points, step: int) -> float:
    if step <= points[0][0]:
        return points[0][1]
    for (before, low), (after, high) in pairwise(points):
        if step <= after:
            return low + (high - low) * ((step - before) / (after - before))
    return points[-1][1]


def _constant_until(points: Points, step: int) -> float:
    if step >= points[-1][0]:
        return math.inf
    if step < points[0][0]:
        return points[0][0]
    low, high = next((low, high) for low, high in pairwise(points) if step < high[0])
    return high[0] if low[1] == high[1] else step


def point_problems(field: str, points: Points) -> Iterator[Problem]:
    """What is wrong with the proportions of one source."""
    if not points:
        yield Problem(field, "is empty; give a number, or points [step, proportion]")
    for (before, _), (after, _) in pairwise(points):
        if after <= before:
            yield Problem(field, f"steps must ascend, and step {after} follows step {before}")
    if points and points[0][0] < 0:
        yield Problem(field, f"steps are counted from 0, and there is a step {points[0][0]}")
    for step, proportion in points:
        if not 0 <= proportion < math.inf:
            yield Problem(field, f"must be at least 0 and finite, and is {proportion} at step {step}")


class Mixer:
    """Gives every row of every step to a source, so that after each step a source has its shares so far to less than one row.

    A source may get its next row once its shares exceed the rows that it has, and must get it before they exceed them by one.
    Of the sources that may get a row, the one that must get it first does: earliest deadline first, which meets all deadlines
    of unit jobs on one machine if any order does (Baruah et al. 1996, Proportionate progress). Deadlines come from the shares
    of the steps to come.

    A source whose share is 0 gets no row, even if it is owed a part of one; the others share these parts. So where shares fall
    to 0, counts may differ by a little more. What is given depends on the mix, the rows of a step and the credits alone.
    """

    def __init__(self, mix: Mix, rows: int, step: int = 0, credits: Sequence[int] | None = None) -> None:
        """`rows` of a step, the next `step`, and the `credits` of the sources before it; None at the start of a run."""
        self.mix, self.rows, self.step = mix, rows, step
        self.credits = list(credits or [0] * len(mix.points))
        """Shares so far less rows so far of every source, in units of the mix; their sum is 0."""
        self._last = mix.last
        self._ends = [mix.last_of(source) for source in range(len(mix.points))]
        self._ahead: dict[int, tuple[int, ...]] = {}
        """Shares of steps to come, as far as they were looked at."""
        self._deadlines = [self._deadline(source, 0) for source in range(len(self.credits))]

    def next_step(self) -> list[int]:
        """The source of each row of the next step."""
        if len(self.credits) == 1:
            self.step += 1
            return [0] * self.rows
        shares, unit, sources = self._shares(self.step), self.mix.unit, list[int]()
        active = [source for source, share in enumerate(shares) if share]
        for row in range(1, self.rows + 1):
            self.credits = [credit + share for credit, share in zip(self.credits, shares, strict=True)]
            source = min(active, key=self._urgency)
            self.credits[source] -= unit
            self._deadlines[source] = self._deadline(source, row)
            sources.append(source)
        if self.step < self._last:
            self._ahead.pop(self.step, None)
        self.step += 1
        return sources

    def _shares(self, step: int) -> tuple[int, ...]:
        step = min(step, self._last)
        if (found := self._ahead.get(step)) is None:
            found = self.mix.shares(step)
            if step <= self.step + KEPT:
                self._ahead[step] = found
        return found

    def _urgency(self, source: int) -> tuple[bool, float]:
        """The smallest of those of several sources is that of the one to get the next row."""
        credit = self.credits[source]
        return (False, self._deadlines[source]) if credit > 0 else (True, -credit)

    def _deadline(self, source: int, row: int) -> float:
        """The row of the run before whose end a source must get its next row, after `row` rows of the current step.

        It is exact, so that it is the same whenever it is computed: a run that is resumed finds what the run before it had.
        """
        missing, at, left = self.mix.unit - self.credits[source], self.step * self.rows + row, self.rows - row
        step = self.step
        while step < self._last:
            if step >= self._ends[source]:
                return math.inf
            constant = int(min(self.mix.constant_until(step), self._last))
            rows = left + (constant - step) * self.rows
            if missing <= (added := self._shares(step)[source] * rows):
                break
            missing, at, left, step = missing - added, at + rows, self.rows, constant + 1
        share = self._shares(step)[source]
        return at + -(-missing // share) if share else math.inf
