"""Every sample of a split exactly once, in the order of the shards, in batches of equal shape on all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sleeptrain.data.batch import FILLER, IGNORED, NO_GROUP, Batch, check, collate
from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.store import Store


class Evaluation:
    """Batches of `micro` rows for rank `rank` of `world`: batch i of rank r begins at row (i * world + r) * micro.

    All ranks get the same number of batches; rows that are missing in the last ones are fillers: copies of the split's last
    row with id -1 and nothing scored. `samples` limits it to the first so many.
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
    ) -> None:
        """Open the data; UserError if it cannot be read."""
        self._store = Store(data, data.eval_split if split is None else split)
        self._micro, self._rank, self._world = micro, rank, world
        self.samples = self._store.rows if samples is None else min(samples, self._store.rows)

    @property
    def manifest(self) -> Manifest:
        """What is known of the sources."""
        return self._store.manifest

    def __len__(self) -> int:
        """Batches of each rank."""
        return math.ceil(self.samples / (self._micro * self._world))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            first = (number * self._world + self._rank) * self._micro
            rows = np.arange(first, first + self._micro)
            batch = collate(self._store.read(np.minimum(rows, self.samples - 1)), rows)
            filler = batch.ids >= self.samples
            if filler.any():
                missing = filler[:, None]
                batch = replace(
                    batch,
                    targets=batch.targets.masked_fill(missing, IGNORED),
                    groups=batch.groups.masked_fill(missing, NO_GROUP),
                    ids=batch.ids.masked_fill(filler, FILLER),
                )
            check(batch, self.manifest)
            yield batch
