"""How the rows of one split of a source are cut from the blocks of its token stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sleep_data.stream import cut_row, from_shard


@dataclass(frozen=True)
class RowCut:
    """Rows of equal length; every block but the last one of the split is full."""

    block: int
    """Tokens of a full block."""
    length: int
    """Tokens of a row, a divisor of `block`."""
    rows: int
    """Rows of the split."""
    pad: int
    """The token that fills the last row."""

    @property
    def per_block(self) -> int:
        """Rows of a full block."""
        return self.block // self.length

    def by_shard(self, blocks: Sequence[int]) -> tuple[int, ...]:
        """The rows of every shard, from its blocks."""
        full = [count * self.per_block for count in blocks]
        return (*full[:-1], self.rows - sum(full[:-1])) if full else ()

    def row(self, block: dict[str, Any], number: int) -> dict[str, Any]:
        """Row `number` of a block, a sample as its shard stores it, as columns of a sample."""
        return cut_row(from_shard(block), number * self.length, self.length, self.pad)
