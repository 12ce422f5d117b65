"""A micro-batch: tokens, targets, initial state, padding and the documents of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sleeptrain.model.state import State
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Pass, Window


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
    starts: Mapping[int, Tensor] = field(default_factory=dict)
    """By number of a window: [rows, tokens of the window] bool, true at the first token of every document that begins there.
    Windows in which none begins are missing, so that they cost no mask."""
    right_padded: bool = False
    """No token of a row comes after padding."""

    def window(self, op: Pass) -> tuple[Tensor, Tensor, TokenMask]:
        """Tokens, targets and mask of the window of a pass."""
        part = slice(op.start, op.stop)
        read, starts = None if self.valid is None else self.valid[:, part], self.starts.get(op.window)
        mask = TokenMask(prefix=read, starts=starts) if self.right_padded else TokenMask(read, starts=starts)
        return self.tokens[:, part], self.targets[:, part], mask.in_pass(op)


def check_starts(starts: Tensor, tokens: Tensor, valid: Tensor | None) -> None:
    """Raise ValueError unless `starts` [rows, length] is bool, of the shape of the tokens, and true at real tokens only."""
    if starts.shape != tokens.shape or starts.dtype != torch.bool:
        raise ValueError(
            f"starts must be bool of the shape of tokens, {list(tokens.shape)}, not {starts.dtype} {list(starts.shape)}"
        )
    if valid is not None and bool((starts & ~valid).any()):
        row, position = (starts & ~valid).nonzero()[0].tolist()
        raise ValueError(
            f"starts marks padding, row {row}, token {position}; a document begins at a token where valid is true"
        )


def starts_by_window(starts: Tensor | None, windows: Iterable[Window]) -> dict[int, Tensor]:
    """`MicroBatch.starts` from the first tokens of documents [rows, length], bool. Reads their values: call it on the CPU."""
    if starts is None:
        return {}
    parts = {number: starts[:, window.start : window.stop] for number, window in enumerate(windows)}
    return {number: part for number, part in parts.items() if bool(part.any())}
