"""Evaluation batches: every sample of a split exactly once, in the order of the shards, in equal shapes on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from sleep_data.task import IGNORED, NO_GROUP
from sleeptrain.data.batch import FILLER, Batch, check, collate, stack
from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import open_sources
from sleeptrain.errors import UserError


class Evaluation:
    """Batches of `micro` rows for rank `rank` of `world`; batch i of rank r begins at row (i * world + r) * micro.

    All ranks get the same number of batches. The last batches are completed with fillers: copies of the last row with id -1
    and without scored positions. `samples` limits evaluation to the first samples of the split of every source. The number of
    batches is rounded up to a multiple of `multiple`.
    """

    def __init__(
        self,
        data: Data,
        *,
        micro: int,
        rank: int = 0,
        world: int = 1,
        split: str | None = None,
        samples: int | None = None,
        multiple: int = 1,
        window: int | None = None,
    ) -> None:
        """Read manifests and indexes; UserError if the data cannot be read. `window` as for `Reader`."""
        self._sources = open_sources(data, data.eval_split if split is None else split, window)
        self._sources.check_cache(1)
        self._micro, self._rank, self._world, self._multiple = micro, rank, world, multiple
        counts = np.array([source.rows for source in self._sources.opened])
        first = counts.cumsum() - counts
        counts = counts if samples is None else np.minimum(counts, samples)
        self._numbers = np.repeat(first - counts.cumsum() + counts, counts) + np.arange(counts.sum())
        """Numbers of the rows that are evaluated, source after source."""
        self.samples = len(self._numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources, which are the held-out sets."""
        return tuple(source.name for source in self._sources.opened)

    @property
    def manifest(self) -> Manifest:
        """The merged manifest of the sources."""
        return self._sources.manifest

    def __len__(self) -> int:
        """Number of batches of each rank."""
        return math.ceil(self.samples / (self._micro * self._world * self._multiple)) * self._multiple

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches; UserError if a shard is damaged or contradicts the manifest."""
        from sleeptrain.data.rows import RowDataset

        if self.samples == 0:
            return
        rows = RowDataset(self._sources)
        try:
            for number in range(len(self)):
                first = (number * self._world + self._rank) * self._micro
                places = np.minimum(np.arange(first, first + self._micro), self.samples - 1)
                columns = stack([rows[row] for row in self._numbers[places].tolist()])
                if "error" in columns:
                    raise UserError(columns["error"][0])
                yield self._fill(collate(columns), first, rows.where)
        finally:
            rows.release()

    def _fill(self, batch: Batch, first: int, where: Callable[[int], str]) -> Batch:
        """The batch that begins at row `first`, with fillers after the last row, checked against the manifest."""
        filler = first + torch.arange(batch.rows) >= self.samples
        if filler.any():
            mask = filler[:, None]
            batch = replace(
                batch,
                targets=batch.targets.masked_fill(mask, IGNORED),
                groups=batch.groups.masked_fill(mask, NO_GROUP),
                ids=batch.ids.masked_fill(filler, FILLER),
            )
        check(batch, self.manifest, where)
        return batch
