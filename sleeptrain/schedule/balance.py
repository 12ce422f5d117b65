"""Balances pipeline stages: splits a stack into contiguous stages with the smallest largest cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Balance:
    """The split of a stack into stages and the cost of every stage; `str` prints it as a table."""

    cuts: tuple[int, ...]
    """First blocks of all stages but stage 0, as `stage_blocks` takes them."""
    costs: tuple[float, ...]
    depth: int

    @property
    def waste(self) -> float:
        """Load imbalance: the fraction of all stages' time spent waiting for the stage with the largest cost."""
        largest = max(self.costs)
        return 1 - sum(self.costs) / (len(self.costs) * largest) if largest else 0.0

    def __str__(self) -> str:
        bounds, largest = (0, *self.cuts, self.depth), max(self.costs) or 1.0
        rows = [
            f"stage {s}  blocks {bounds[s]}..{bounds[s + 1] - 1}  cost {cost:.4g}  {cost / largest:.0%} of the largest"
            for s, cost in enumerate(self.costs)
        ]
        return "\n".join([*rows, f"load imbalance     {self.waste:.1%} of all stages' time"])


def balance(blocks: Sequence[float], stages: int, looped: tuple[int, int], passes: float, head: float = 0.0) -> Balance:
    """Splits a stack into contiguous stages with the smallest largest cost and, among those, the most even costs.

    `blocks`: cost of every block in one pass. Blocks of `looped` (first, stop) run `passes` times as often as the others
    (the mean over windows). `head`: cost of the head, on the last stage. Every stage gets at least one block.
    Raises ValueError if there are fewer blocks than stages.
    """
    depth = len(blocks)
    if not 1 <= stages <= depth:
        raise ValueError(f"{depth} blocks cannot be shared by {stages} stages: every stage needs at least one block")
    prefix_sums = [0.0]
    for b, block_cost in enumerate(blocks):
        prefix_sums.append(prefix_sums[-1] + block_cost * (passes if looped[0] <= b < looped[1] else 1))

    def cost(first: int, stop: int) -> float:
        return prefix_sums[stop] - prefix_sums[first] + (head if stop == depth else 0.0)

    # smallest[p][stop]: smallest largest cost of p + 1 stages over the first `stop` blocks.
    smallest = [[cost(0, stop) if stop else float("inf") for stop in range(depth + 1)]]
    for _ in range(1, stages):
        fewer_stages = smallest[-1]
        smallest.append([
            min((max(fewer_stages[cut], cost(cut, stop)) for cut in range(1, stop)), default=float("inf"))
            for stop in range(depth + 1)
        ])  # fmt: skip
    cuts = _most_even_cuts(depth, stages, smallest[-1][depth] * (1 + 1e-12), cost)
    bounds = (0, *cuts, depth)
    return Balance(cuts, tuple(cost(a, b) for a, b in pairwise(bounds)), depth)


def _most_even_cuts(depth: int, stages: int, limit: float, cost: Callable[[int, int], float]) -> tuple[int, ...]:
    """The cuts with the smallest sum of squared costs, among those with no cost above `limit`."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for p in range(stages):
        stops = [depth] if p == stages - 1 else range(p + 1, depth - stages + p + 2)
        best = {
            stop: min((squares + cost(cut, stop) ** 2, (*cuts, cut)) for cut, (squares, cuts) in options)
            for stop in stops
            if (options := [(cut, split) for cut, split in best.items() if cut < stop and cost(cut, stop) <= limit])
        }
    return best[depth][1][1:]
