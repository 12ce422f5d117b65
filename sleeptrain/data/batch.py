"""What a step is given: rows of tokens with what is to be predicted, and the check that they keep the declared layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest

IGNORED = -100
"""Target of a position that is not scored."""
NO_GROUP = -1
"""Group of a position that is no part of an answer."""
FILLER = -1
"""Id of a row that only fills up an evaluation batch; none of its positions is scored."""


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch; all tensors int64."""

    tokens: Tensor
    """[rows, length]"""
    targets: Tensor
    """[rows, length]: the token to be predicted from the positions up to here; -100 where nothing is scored."""
    groups: Tensor
    """[rows, length]: the label value by which accuracy is divided; -1 where a position is no part of an answer."""
    ids: Tensor
    """[rows]: the number of the row in the split, counted through all sources; -1 for a filler."""
    labels: dict[str, Tensor]
    """[rows, ...] each: small integers that describe the sample."""

    @property
    def rows(self) -> int:
        """Number of rows, fillers included."""
        return self.tokens.shape[0]

    @property
    def scored(self) -> int:
        """Number of positions in the loss."""
        return int((self.targets != IGNORED).sum())

    def real(self, pad: int) -> Tensor | None:
        """[rows, length], false at padding; None where there is none."""
        valid = self.tokens != pad
        return None if bool(valid.all()) else valid

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; the copy may be asynchronous."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if field.name != "labels"
        }
        labels = {name: value.to(device, non_blocking=True) for name, value in self.labels.items()}
        return Batch(**moved, labels=labels)

    def slice(self, start: int, stop: int) -> Batch:
        """Rows [start, stop), as views."""
        labels = {name: value[start:stop] for name, value in self.labels.items()}
        part = slice(start, stop)
        return Batch(self.tokens[part], self.targets[part], self.groups[part], self.ids[part], labels)


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of some rows, as the shards hold them; or {"error": [why]} of the first that could not be read."""
    for sample in samples:
        if "error" in sample:
            return {"error": [sample["error"]]}
    return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}


def collate(columns: dict[str, Any]) -> Batch:
    """A batch of stacked columns, of which "row" has the ids."""

    def tensor(column: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(column, np.int64))

    labels = {name.removeprefix("label_"): tensor(columns[name]) for name in columns if name.startswith("label_")}
    fixed: dict[str, Any] = {name: tensor(columns[name]) for name in ("tokens", "targets", "groups")}
    return Batch(**fixed, ids=tensor(columns["row"]), labels=labels)


def check(batch: Batch, manifest: Manifest, where: Callable[[int], str] | None = None) -> None:
    """UserError if a row contradicts the manifest: its length, its ids, or a target where no window has targets.

    All ranks run the program that the manifest's windows give; a target in a window without targets would be slept over
    instead of scored. `where` names the file and the sample of a row, given its id.
    """
    if batch.tokens.shape[1] != manifest.length:
        raise UserError(f"samples have {batch.tokens.shape[1]} tokens; the manifest says {manifest.length}")
    scored = batch.targets != IGNORED
    asleep = torch.zeros(manifest.length, dtype=torch.bool)
    for window in manifest.windows:
        asleep[window.start : window.stop] = not window.targets
    outside = (batch.tokens < 0) | (batch.tokens >= manifest.vocab)
    strange = scored & ((batch.targets < 0) | (batch.targets >= manifest.vocab))
    for wrong, what in (
        (scored & asleep, "there is a target in a window that the manifest declares to have none"),
        (outside, f"a token is not among {manifest.vocab} ids"),
        (strange, f"a target is not among {manifest.vocab} ids"),
        (scored & (batch.tokens == manifest.pad), "there is a target at padding"),
    ):
        if wrong.any():
            row, position = (int(value) for value in wrong.nonzero()[0])
            number, window = next((n, w) for n, w in enumerate(manifest.windows) if position < w.stop)
            sample = int(batch.ids[row])
            raise UserError(
                f"the data contradicts its manifest: {what} ({where(sample) if where else f'sample {sample}'}, position {position}, "
                f"in window {number} of tokens {window.start} to {window.stop - 1}); build the data again"
            )
