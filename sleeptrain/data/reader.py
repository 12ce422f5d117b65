"""Training batches of one data-parallel rank: an endless stream of steps, mixed from the sources, with exact resume.

`Draws` says which rows a step has, or `LaneDraws` where rows continue those of the step before. The dataset of
mosaicml-streaming, in worker processes, takes that for the order of an epoch without end and reads, downloads and decompresses
ahead of it. Row i of a global batch goes to rank i % world, which fills its micro-batches in order. So a global batch has the
same rows, whatever the number of ranks, micro-batches and workers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import weakref
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sleeptrain.data.batch import Batch, check, collate, stack
from sleeptrain.data.budget import SourceSize
from sleeptrain.data.config import Data
from sleeptrain.data.draws import Drawn, Spans, span_drawn
from sleeptrain.data.lane_draws import LaneDraws
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reading_order import reading_order
from sleeptrain.data.sources import open_sources
from sleeptrain.data.worker_signals import delay_signals
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from streaming import StreamingDataLoader

    from sleeptrain.data.rows import RowDataset

VERSION = 2
"""Version of `Reader.state_dict`."""


class Reader:
    """Micro-batches of each step for data-parallel rank `rank` of `world`.

    micro           rows of a micro-batch
    accumulation    micro-batches of a step on each rank
    seed            determines the order of all epochs
    window          tokens of the windows of text (`sleep.window`); data of tasks has windows of its own

    Tensor-parallel and pipeline-parallel ranks of one replica read the same rows, and pass the same `rank`.
    """

    def __init__(
        self,
        data: Data,
        *,
        micro: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        split: str | None = None,
        window: int | None = None,
    ) -> None:
        """Read manifests and indexes, and start at the first step. UserError if the data cannot be read."""
        self.split = data.split if split is None else split
        self.rows_per_step = micro * accumulation * world
        self._data, self._micro, self._accumulation = data, micro, accumulation
        self._rank, self._world, self._seed = rank, world, seed
        self._sources = open_sources(data, self.split, window)
        self._sources.check_cache(micro * accumulation)
        self._rows: RowDataset | None = None
        self._loader: StreamingDataLoader | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None
        # Without this, Python sends SIGTERM to the workers when it exits, and waits until their grace period is over.
        atexit.register(_close, weakref.ref(self))
        if self.samples_per_epoch < self.rows_per_step:
            raise UserError(
                f"the {self.split} split has {self.samples_per_epoch} samples, fewer than one step's {self.rows_per_step} "
                f"({micro} rows x {accumulation} micro-batches x {world} ranks); use a smaller batch or more data"
            )
        mix = data.mix([source.rows for source in self._sources.opened])
        for source, points in zip(self._sources.opened, mix.points, strict=True):
            if source.rows == 0 and any(share for _, share in points):
                raise UserError(
                    f"the source {source.name} has no samples in its {self.split} split; give it proportion 0, or build it with some"
                )
        self._orders, self._draws = reading_order(data, self._sources, mix, self.rows_per_step, seed)
        self._tokens = [0] * len(self.names)
        self.last_read: Spans = ()
        """What the last step has read; empty before the first one."""

    @property
    def manifest(self) -> Manifest:
        """The merged manifest of the sources."""
        return self._sources.manifest

    @property
    def sizes(self) -> tuple[SourceSize, ...]:
        """Rows and real tokens of each source."""
        return self._sources.sizes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources."""
        return self._data.names

    @property
    def samples_per_epoch(self) -> int:
        """Rows of all sources."""
        return self._sources.rows

    def next_step(self) -> list[Batch]:
        """The next `accumulation` micro-batches of this rank. UserError if a shard is damaged or contradicts the manifest."""
        try:
            batches = self._read()
        except BaseException:
            self.close()  # garbage collection would take seconds to end the workers
            raise
        drawn = self._draws.next_step()
        self.last_read = span_drawn(drawn, len(self.names))
        return self._with_continued(batches, drawn) if isinstance(self._draws, LaneDraws) else batches

    def _with_continued(self, batches: Sequence[Batch], drawn: Sequence[Drawn]) -> list[Batch]:
        """The batches, which know which of their rows continue those of the step before."""
        continued = torch.tensor([row.offset > 0 for row in drawn[self._rank :: self._world]])
        parts = continued.split(self._micro)
        return [replace(batch, continued=part) for batch, part in zip(batches, parts, strict=True)]

    def count_tokens(self, tokens: Sequence[int]) -> None:
        """Count the real tokens of each source in the last step of all ranks, which only the caller knows."""
        self._tokens = [before + more for before, more in zip(self._tokens, tokens, strict=True)]

    def seen(self) -> dict[str, dict[str, Any]]:
        """Rows, real tokens and epochs that all ranks have read of every source, by its name, as metrics."""
        rows, sources = self._draws.rows, self._sources.opened
        epochs = [count / source.rows if source.rows else 0.0 for count, source in zip(rows, sources, strict=True)]
        columns: dict[str, list[Any]] = {"rows": rows, "tokens": list(self._tokens), "epochs": epochs}
        return {f"{name}_by_source": dict(zip(self.names, column, strict=True)) for name, column in columns.items()}

    @property
    def left_out(self) -> list[Spans]:
        """What is not read, besides what comes before it."""
        return list(self._draws.left_out)

    def leave_out(self, steps: Sequence[Spans]) -> None:
        """Do not read what steps have read (`last_read`), besides what is left out already."""
        self._draws.leave_out(steps)
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """What was read and what is left out, as JSON values; equal for any number of ranks and workers."""
        own = {"version": VERSION, "seed": self._seed, "data": self.manifest.hash, "lane": self._data.lane}
        return own | {"tokens": list(self._tokens)} | self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a `state_dict`. UserError if it belongs to other data, another seed or another version."""
        current = self.state_dict()
        for name, meaning in (
            ("version", "another version of the data's order"),
            ("data", "other data"),
            ("seed", "another seed"),
            ("lane", "runs of rows in lanes of another length"),
        ):
            if state.get(name) != current[name]:
                raise UserError(
                    f"the checkpoint was trained on {meaning} ({name} {state.get(name)}, now {current[name]}); "
                    "resume with the same, or start a new run"
                )
        if isinstance(self._draws, LaneDraws) and len(state["lanes"]) != self.rows_per_step:
            raise UserError(
                f"train.batch is {self.rows_per_step}, and the checkpoint has {len(state['lanes'])} lanes, one for each row of a step; "
                "resume with the same train.batch, or start a new run"
            )
        self._draws.load_state_dict(state)
        self._tokens = list(state["tokens"])
        self.close()

    def close(self) -> None:
        """Stop the workers and release shared memory. A later `next_step` opens the data again where it stands."""
        if self._loader is not None:
            # Explicitly, since a stack trace may keep the loader alive until Python exits, which then takes long.
            self._loader.__del__()
        if self._rows is not None:
            self._rows.release()
        self._iterator = self._loader = self._rows = None

    def _read(self) -> list[Batch]:
        """The micro-batches of the next step."""
        if self._rows is None or self._iterator is None:
            self._rows, self._loader = self._open()
            self._iterator = iter(self._loader)
        batches = []
        for _ in range(self._accumulation):
            columns = next(self._iterator)
            if "error" in columns:
                raise UserError(columns["error"][0])
            batch = collate(columns)
            check(batch, self.manifest, self._rows.where)
            batches.append(batch)
        return batches

    def _open(self) -> tuple[RowDataset, StreamingDataLoader]:
        """The dataset and its data loader, which starts the workers."""
        from sleeptrain.data.rows import RowDataset, StreamingDataLoader
        from sleeptrain.data.worker_rows import RankRows

        workers = self._data.workers
        # Copied together, since draws read orders, and threads of the dataset are ahead of this one.
        draws, orders = deepcopy((self._draws, self._orders))
        reads = RankRows(draws, orders, self._micro, self._accumulation, self._rank, self._world)
        rows = RowDataset(self._sources, reads)
        if rows.num_samples != self._sources.rows:
            rows.release()
            raise UserError(
                f"the shards hold {rows.num_samples:,} samples and their manifests say {self._sources.rows:,}; build the data again"
            )
        loader = StreamingDataLoader(
            rows,
            batch_size=self._micro,
            num_workers=workers,
            collate_fn=stack,  # workers send arrays through a pipe, but tensors through shared memory
            worker_init_fn=delay_signals,
            # A fork server, which Python 3.14 has by default, would be the workers' parent, and a worker ends without its own.
            multiprocessing_context="fork" if workers and multiprocessing.get_start_method() == "forkserver" else None,
            prefetch_factor=4 if workers else None,
            # Seeds of workers, which nothing uses. From the global generator, every start of a reader would draw a number.
            generator=torch.Generator(),
        )
        return rows, loader


def _close(reader: weakref.ref[Reader]) -> None:
    """Close a reader, if it still exists."""
    existing = reader()
    if existing is not None:
        existing.close()
