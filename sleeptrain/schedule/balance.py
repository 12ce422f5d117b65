"""Cuts a stack into stages so that the slowest one is as quick as it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Balance:
    """Where a stack is cut, and what every stage then costs; prints itself."""

    cuts: tuple[int, ...]
    """Blocks before which it is cut: what `slices` takes."""
    costs: tuple[float, ...]
    depth: int

    @property
    def waste(self) -> float:
        """Fraction of the stages' time that they wait for the slowest one."""
        worst = max(self.costs)
        return 1 - sum(self.costs) / (len(self.costs) * worst) if worst else 0.0

    def __str__(self) -> str:
        bounds, worst = (0, *self.cuts, self.depth), max(self.costs) or 1.0
        rows = [
            f"stage {s}  blocks {bounds[s]}..{bounds[s + 1] - 1}  cost {cost:.4g}  {cost / worst:.0%} of the slowest"
            for s, cost in enumerate(self.costs)
        ]
        return "\n".join([*rows, f"{self.waste:.1%} of all stages' time is lost to uneven stages"])


def balance(blocks: Sequence[float], stages: int, looped: tuple[int, int], passes: float, head: float = 0.0) -> Balance:
    """Cut a stack into `stages` neighbouring slices whose largest cost is smallest, and among those the evenest.

    `blocks` what each block costs in one pass; those of `looped` (first, stop) run `passes` times for every time that the
    others run once (the mean over windows); `head` what the head costs on the same scale, on the last stage. Every stage
    gets a block. Raises ValueError where there are fewer blocks than stages.
    """
    depth = len(blocks)
    if not 1 <= stages <= depth:
        raise ValueError(f"{depth} blocks cannot be shared by {stages} stages: every stage needs at least one block")
    sums = [0.0]
    for b, once in enumerate(blocks):
        sums.append(sums[-1] + once * (passes if looped[0] <= b < looped[1] else 1))

    def cost(first: int, stop: int) -> float:
        return sums[stop] - sums[first] + (head if stop == depth else 0.0)

    # best[p][stop]: the smallest largest cost of p + 1 stages over the first `stop` blocks.
    best = [[cost(0, stop) if stop else float("inf") for stop in range(depth + 1)]]
    for _ in range(1, stages):
        before = best[-1]
        best.append([
            min((max(before[cut], cost(cut, stop)) for cut in range(1, stop)), default=float("inf"))
            for stop in range(depth + 1)
        ])  # fmt: skip
    cuts = _evenest(depth, stages, best[-1][depth] * (1 + 1e-12), cost)
    bounds = (0, *cuts, depth)
    return Balance(cuts, tuple(cost(a, b) for a, b in pairwise(bounds)), depth)


def _evenest(depth: int, stages: int, limit: float, cost: Callable[[int, int], float]) -> tuple[int, ...]:
    """Of the cuts that leave no stage above `limit`, those with the smallest sum of squares."""
    found: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for p in range(stages):
        stops = [depth] if p == stages - 1 else range(p + 1, depth - stages + p + 2)
        found = {
            stop: min((squares + cost(cut, stop) ** 2, (*cuts, cut)) for cut, (squares, cuts) in options)
            for stop in stops
            if (options := [(cut, way) for cut, way in found.items() if cut < stop and cost(cut, stop) <= limit])
        }
    return found[depth][1][1:]
