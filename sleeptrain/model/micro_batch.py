"""A micro-batch: tokens, targets, initial state and padding mask."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sleeptrain.model.state import State
from sleeptrain.program import Pass


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are run together."""

    tokens: Tensor
    """[rows, length] int64."""
    targets: Tensor
    """[rows, length] int64; positions with -100 are not scored."""
    state: State
    """The state before the first token."""
    valid: Tensor | None = None
    """[rows, length] bool, false at padding; None where no token is padding."""
    loss_scale: float = 1.0
    """The factor of a target's loss in the loss that is differentiated; the unit of `gradient.clip_state`."""

    def window(self, op: Pass) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, targets and padding mask of the window of a pass."""
        part = slice(op.start, op.stop)
        return self.tokens[:, part], self.targets[:, part], None if self.valid is None else self.valid[:, part]
