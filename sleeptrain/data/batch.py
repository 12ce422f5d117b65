"""Micro-batches: rows of tokens with their targets, and the check that they match the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleep_data.task import IGNORED
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.model.micro_batch import MicroBatch, starts_by_window
from sleeptrain.model.state import State
from sleeptrain.program import Window

FILLER = -1
"""Id of a row that pads an evaluation batch to its full size; none of its positions is scored."""


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch; all tensors but `starts` are int64."""

    tokens: Tensor
    """[rows, length]"""
    targets: Tensor
    """[rows, length]: the token to be predicted from all tokens up to this position; -100 if it is not scored."""
    groups: Tensor
    """[rows, length]: the label value by which accuracy is broken down; -1 if the target is not part of an answer."""
    ids: Tensor
    """[rows]: number of the row in the split, through all sources; -1 for a filler."""
    labels: dict[str, Tensor]
    """[rows, ...] each: integers that describe the sample."""
    starts: Tensor | None = None
    """[rows, length], bool: true at the first token of every document in rows of several; None where each row is one sample."""
    sources: Tensor | None = None
    """[rows]: the number of each row's source; None where there is one source."""
    continued: Tensor | None = None
    """[rows], bool: whether a row continues the one at its place in the step before; None where rows are not lanes."""

    @property
    def rows(self) -> int:
        """Number of rows, including fillers."""
        return self.tokens.shape[0]

    @property
    def scored(self) -> int:
        """Number of scored positions."""
        return int((self.targets != IGNORED).sum())

    def real(self, pad: int) -> Tensor | None:
        """Bool [rows, length], false at padding; None if there is no padding."""
        valid = self.tokens != pad
        return None if bool(valid.all()) else valid

    def starts_by_window(self, windows: Sequence[Window]) -> dict[int, Tensor]:
        """The first tokens of documents, for windows in which some begin (`MicroBatch.starts`); call it on the CPU.

        The first token of a row does not count: a row begins with an empty state, unless it continues a document.
        """
        if self.starts is None:
            return {}
        inside = self.starts.clone()
        inside[:, 0] = False
        return starts_by_window(inside, windows)

    def micro_batch(self, state: State, windows: Sequence[Window], pad: int, loss_scale: float = 1.0) -> MicroBatch:
        """These rows on the device of `state`, with which they begin. Reads their values: call it on a batch in host memory."""
        valid, device = self.real(pad), state.flat()[0].device
        starts = {number: first.to(device) for number, first in self.starts_by_window(windows).items()}
        moved = self.to(device)
        valid, right_padded = (None, False) if valid is None else (valid.to(device), _only_at_the_end(~valid))
        return MicroBatch(moved.tokens, moved.targets, state, valid, loss_scale, starts, right_padded)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on `device`. To a GPU it is asynchronous, from page-locked memory."""
        pin = torch.device(device).type == "cuda" and not self.tokens.is_cuda

        def move(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)

        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "labels"}
        moved: dict[str, Any] = {name: t if t is None else move(t) for name, t in tensors.items()}
        labels = {name: move(value) for name, value in self.labels.items()}
        return Batch(**moved, labels=labels)

    def slice(self, start: int, stop: int) -> Batch:
        """Rows [start, stop), as views."""
        labels = {name: value[start:stop] for name, value in self.labels.items()}
        span = slice(start, stop)
        optional = (None if part is None else part[span] for part in (self.starts, self.sources, self.continued))
        return Batch(self.tokens[span], self.targets[span], self.groups[span], self.ids[span], labels, *optional)


def _only_at_the_end(padding: Tensor) -> bool:
    """Whether no token of a row comes after padding [rows, length]."""
    return not bool((padding[:, :-1] & ~padding[:, 1:]).any())


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples to columns [rows, ...]; returns {"error": [message]} of the first sample that could not be read."""
    for sample in samples:
        if "error" in sample:
            return {"error": [sample["error"]]}
    return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}


def collate(columns: dict[str, Any]) -> Batch:
    """The batch of some stacked columns; the column "row" holds the ids."""

    def tensor(column: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(column, np.int64))

    labels = {name.removeprefix("label_"): tensor(columns[name]) for name in columns if name.startswith("label_")}
    tensors: dict[str, Any] = {name: tensor(columns[name]) for name in ("tokens", "targets", "groups")}
    starts = tensor(columns["starts"]).bool() if "starts" in columns else None
    sources = tensor(columns["source"]) if "source" in columns else None
    return Batch(**tensors, ids=tensor(columns["row"]), labels=labels, starts=starts, sources=sources)


def by_source(values: Tensor, sources: Tensor | None, count: int) -> Tensor:
    """Sums over the rows of each of `count` sources of `values` [rows, ...], [sources, ...]; all rows where there is one source.

    A row that is not finite does not change the sums of other sources.
    """
    if sources is None:
        return values.sum(0, keepdim=True)
    mine = sources == torch.arange(count, device=sources.device)[:, None]
    return values.where(mine.reshape(*mine.shape, *[1] * (values.dim() - 1)), 0).sum(1)


def check(batch: Batch, manifest: Manifest, where: Callable[[int], str] | None = None) -> None:
    """UserError if the length, the token ids or the targets of a row contradict the manifest.

    All ranks run the program of the manifest's windows. A target in a window without targets would never be scored, since
    such a window has no loss. `where` returns the file and the sample of a row, given its id.
    """
    if batch.tokens.shape[1] != manifest.length:
        raise UserError(f"samples have {batch.tokens.shape[1]} tokens; the manifest says {manifest.length}")
    scored = batch.targets != IGNORED
    unscored = torch.zeros(manifest.length, dtype=torch.bool)
    for window in manifest.windows:
        unscored[window.start : window.stop] = not window.targets
    bad_token = (batch.tokens < 0) | (batch.tokens >= manifest.vocab)
    bad_target = scored & ((batch.targets < 0) | (batch.targets >= manifest.vocab))
    for wrong, problem in (
        (scored & unscored, "there is a target in a window that the manifest declares to have none"),
        (bad_token, f"a token is not one of the {manifest.vocab} ids"),
        (bad_target, f"a target is not one of the {manifest.vocab} ids"),
        (scored & (batch.tokens == manifest.pad), "there is a target at padding"),
    ):
        if wrong.any():
            row, position = (int(value) for value in wrong.nonzero()[0])
            number, window = next((n, w) for n, w in enumerate(manifest.windows) if position < w.stop)
            sample = int(batch.ids[row])
            raise UserError(
                f"the data contradicts its manifest: {problem} ({where(sample) if where else f'sample {sample}'}, position {position}, "
                f"in window {number} of tokens {window.start} to {window.stop - 1}); build the data again"
            )
