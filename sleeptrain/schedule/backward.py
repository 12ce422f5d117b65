"""What the backward of a pass goes through: whole blocks, one block's state alone, or nothing; and its FLOPs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sleeptrain.schedule.schedule import StageOp


@dataclass(frozen=True)
class BlockFlops:
    """Forward FLOPs of one block. Backward of a product costs twice its forward: one for each factor. A frozen weight has no gradient."""

    token: float
    """For each token."""
    pair: float = 0.0
    """For each pair of a query and a key that it attends to; 0 for blocks without attention, and those of local attention."""
    local_pair: float = 0.0
    """The same for local attention, which has another reach."""
    state: float | None = None
    """Of `token`: what the new state of the block (S, or keys and values) depends on; None: the whole block."""
    frozen: float = 0.0
    """Of `token`: products with frozen weights, whose backward has one factor only."""
    frozen_state: float = 0.0
    """Of `state`: the same."""

    @property
    def attends(self) -> bool:
        """Whether it has attention."""
        return self.pair > 0 or self.local_pair > 0


@dataclass(frozen=True)
class BackwardBlocks:
    """The blocks of one op that a gradient reaches."""

    whole: range
    """Those whose output features have a gradient."""
    state: int | None = None
    """The block above them, of which only the state has a gradient; None if there is none."""

    def reaches(self, block: int, kind: str) -> bool:
        """Whether the state that a block reads has a gradient: `S`, or the cached keys and values, `kv`."""
        return block in self.whole or (block == self.state and kind == "S")

    @property
    def any(self) -> bool:
        """Whether there is a backward at all."""
        return bool(self.whole) or self.state is not None


def backward_blocks(
    ops: Mapping[int, StageOp], blocks: Sequence[BlockFlops], lowest: int = 0
) -> dict[int, BackwardBlocks]:
    """For every op of a stage the blocks that a gradient reaches; `blocks` are those of the whole stack. Those below `lowest` have none.

    Features that the head or a later pass reads have a gradient in all blocks. Where nothing reads them, as after the last pass over
    a window, the gradient enters by the state: the highest block whose state is read has the backward of what its state depends
    on, the blocks below it have a whole one, those above it none. A gradient that another stage sends counts as one that exists.
    """
    found: dict[int, BackwardBlocks] = {}
    readers = _readers(ops)
    for i in reversed(list(ops)):
        stage_op = ops[i]
        stop = stage_op.blocks[1]
        first = min(max(stage_op.blocks[0], lowest), stop)
        if not stage_op.backward:
            found[i] = BackwardBlocks(range(first, first))
        elif stage_op.loss or stage_op.receives_grad or any(found[reader].any for reader in readers["h", i]):
            found[i] = BackwardBlocks(range(first, stop))
        else:
            kinds = ["kv" if blocks[b].attends else "S" for b in range(first, stop)]
            read = [
                b
                for b, kind in enumerate(kinds, first)
                if any(found[reader].reaches(b, kind) for reader in readers[kind, i])
            ]
            found[i] = BackwardBlocks(range(first, max(read, default=first)), max(read, default=None))
    return found


def _readers(ops: Mapping[int, StageOp]) -> dict[tuple[str, int], list[int]]:
    """The ops of a stage whose backward gives a gradient to what another one wrote, by the kind of value and the op that wrote it."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, stage_op in ops.items():
        for kind, source in (("h", stage_op.h), ("S", stage_op.S), ("kv", stage_op.kv)):
            if source is not None and source.grad and source.stage == stage_op.S.stage:
                found[kind, source.op].append(i)
    return found


def backward_flops(reached: BackwardBlocks, blocks: Sequence[BlockFlops]) -> tuple[float, float, float]:
    """FLOPs of the backward of one op: for each token, and for each pair of a query and a key, in A and in L blocks."""
    token = sum(2 * blocks[b].token - blocks[b].frozen for b in reached.whole)
    pair, local_pair = (sum(2 * getattr(blocks[b], name) for b in reached.whole) for name in ("pair", "local_pair"))
    if reached.state is not None:
        block = blocks[reached.state]
        whole = block.state is None
        token += 2 * (block.token if block.state is None else block.state) - (
            block.frozen if whole else block.frozen_state
        )
        pair += 2 * block.pair if block.state is None else 0.0
        local_pair += 2 * block.local_pair if block.state is None else 0.0
    return token, pair, local_pair
