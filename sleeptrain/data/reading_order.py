"""The order in which a run reads its sources: that of each source, and what draws the rows of every step from them."""

from __future__ import annotations

from collections.abc import Sequence

from sleeptrain.data.config import Data
from sleeptrain.data.draws import Draws
from sleeptrain.data.lane_draws import LaneDraws
from sleeptrain.data.mixture import Mix
from sleeptrain.data.order import RunOrder, SourceOrder
from sleeptrain.data.sources import Sources
from sleeptrain.errors import UserError

Orders = Sequence[SourceOrder] | Sequence[RunOrder]
"""The order of every source, by rows or by runs of rows."""


def reading_order(
    data: Data, sources: Sources, mix: Mix, rows_per_step: int, seed: int
) -> tuple[Orders, Draws | LaneDraws]:
    """The orders of all sources, and the draws at the first step. UserError where `data.lane` does not fit the data."""
    firsts = [sum(source.rows for source in sources.opened[:i]) for i in range(len(sources.opened))]
    of_source = [
        (source.shard_rows, first, (seed, number), data.shuffle)
        for number, (source, first) in enumerate(zip(sources.opened, firsts, strict=True))
    ]
    if data.lane is None:
        return [SourceOrder(*source) for source in of_source], Draws(mix, rows_per_step)
    if sources.manifest.block is None:
        raise UserError(
            f"data.lane = {data.lane:,}: lanes read text, and every sample of the task {sources.manifest.task} begins with an "
            "empty state; leave data.lane out"
        )
    longest, rest = divmod(data.lane, sources.manifest.length)
    if rest or longest < 2:
        raise UserError(
            f"data.lane = {data.lane:,}: must be a multiple of the {sources.manifest.length:,} tokens of a row, two rows at least"
        )
    runs = [RunOrder(*source, longest) for source in of_source]
    for source, order, points in zip(sources.opened, runs, mix.points, strict=True):
        if len(order) < rows_per_step and any(share for _, share in points):
            raise UserError(
                f"data.lane = {data.lane:,}: the {sources.split} split of {source.name} has {len(order):,} runs of rows of so many tokens, "
                f"fewer than a step has rows ({rows_per_step:,}); use a smaller data.lane or train.batch, or more data"
            )
    return runs, LaneDraws(mix, runs, rows_per_step)
