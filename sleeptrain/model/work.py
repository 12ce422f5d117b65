"""The work of real rows: the tokens that passes read and the pairs that attention computes, without padding and masked documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleeptrain.program import Pass, Program, Sleep, Window, kept_tokens, pairs_seen

NO_REACHES = (None, None)
"""`Model.reaches` where queries see the whole context window."""


def work_of_rows(
    valid: Tensor, starts: Tensor | None, windows: Sequence[Window], sleep: Sleep, reaches: Sequence[int | None] = NO_REACHES
) -> Tensor:  # fmt: skip
    """Work on each window, summed over rows: float64 [windows, 2, 3].

    valid     [rows, length] bool, false at padding
    starts    [rows, length] bool, true at the first token of every document; None where a row is one document
    reaches   `Model.reaches`

    Axis 1: a pass over all documents, and a pass over the last document of the window (`Pass.last_document`). Axis 2: tokens, pairs
    of a query and a key that it attends to in A blocks, and those in L blocks.
    """
    spans = [min(sleep.window, reach or sleep.window) for reach in reaches]
    position = torch.arange(valid.shape[1], device=valid.device)
    before = torch.nn.functional.pad(valid.long().cumsum(1), (1, 0))  # real tokens before each position
    first = torch.zeros_like(before[:, :-1]) if starts is None else (starts * position).cummax(1).values
    found = []
    for window in windows:
        part = slice(window.start, window.stop)
        document = first[:, part]
        keys = []
        for span in spans:
            oldest = (position[part] - span + 1).clamp(min=max(0, window.start - kept_tokens(sleep)))
            earlier = before.gather(1, torch.maximum(document, oldest))
            keys.append(before[:, window.start + 1 : window.stop + 1] - earlier)
        last = document == document[:, -1:]
        found.append(torch.stack([_sums(valid[:, part], keys), _sums(valid[:, part] & last, keys)]))
    return torch.stack(found)


def _sums(read: Tensor, keys: Sequence[Tensor]) -> Tensor:
    return torch.stack([read.sum(), *((of_kind * read).sum() for of_kind in keys)]).double()


def work_of_full_row(program: Program, reaches: Sequence[int | None] = NO_REACHES) -> Tensor:
    """Work on each window of a row that is one document without padding, as `work_of_rows`."""
    work = torch.zeros(program.windows, 2, 3, dtype=torch.float64)
    for op in program.ops:
        if isinstance(op, Pass):
            pairs = [pairs_seen(program, op, reach) for reach in reaches]
            work[op.window, int(op.last_document)] = torch.tensor([op.stop - op.start, *pairs], dtype=torch.float64)
    return work
