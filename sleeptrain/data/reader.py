"""Training batches of one data-parallel rank: an endless stream, shuffled by epoch, with exact resume.

The dataset of mosaicml-streaming derives the order of an epoch from seed and epoch, and its data loader reads it. Row i of a
global batch goes to rank i % world, which fills its micro-batches in order. So a global batch has the same rows, whatever the
number of ranks, micro-batches and workers. Rows at the end of an epoch that do not fill a global batch are dropped: the
library would repeat rows there, and how many depends on the number of ranks.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sleep_launch.parent import signal_at_parents_death
from sleeptrain.data.batch import Batch, check, collate, stack
from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import open_sources
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from streaming import StreamingDataLoader

    from sleeptrain.data.rows import RowDataset

Position = tuple[int, int]
"""An epoch, and the first row of a step in it."""
GRACE = 30.0
"""Seconds that a worker lives on after SIGTERM: SLURM signals all processes at once, and the main one saves first."""


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
        self._epoch = 0
        self._sample = 0
        self._left_out: list[tuple[int, int, int]] = []
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

    @property
    def manifest(self) -> Manifest:
        """The merged manifest of the sources."""
        return self._sources.manifest

    @property
    def samples_per_epoch(self) -> int:
        """Rows of an epoch, including those at its end that do not fill a step."""
        return self._sources.rows

    @property
    def epoch(self) -> int:
        """Epoch of the next step."""
        return self.position[0]

    def next_step(self) -> list[Batch]:
        """The next `accumulation` micro-batches of this rank. UserError if a shard is damaged or contradicts the manifest."""
        epoch, sample = self.position
        if sample != (self._sample if epoch == self._epoch else 0):
            self._iterator = None  # rows are left out
        new_epoch, self._epoch, self._sample = epoch > self._epoch, epoch, sample
        try:
            batches = self._read(new_epoch)
        except BaseException:
            self.close()  # garbage collection would take seconds to end the workers
            raise
        self._sample += self.rows_per_step
        return batches

    def skip(self, steps: int) -> None:
        """Skip the next `steps` steps without reading them."""
        for _ in range(steps):
            self._epoch, self._sample = self.position
            self._sample += self.rows_per_step
        self._iterator = None

    @property
    def left_out(self) -> list[tuple[int, int, int]]:
        """Rows that are not read: epoch, first row, the one after the last."""
        return list(self._left_out)

    def leave_out(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Do not read these rows, besides those that are left out already."""
        self._left_out += [one for one in rows if one not in self._left_out]

    def rows_at(self, positions: Sequence[Position]) -> list[tuple[int, int, int]]:
        """The rows of the steps at these positions."""
        return [(epoch, sample, sample + self.rows_per_step) for epoch, sample in positions]

    def state_dict(self) -> dict[str, Any]:
        """Position of the next step and what is left out, as JSON values; equal for any number of ranks and workers."""
        return {
            "version": 1, "epoch": self._epoch, "sample": self._sample, "seed": self._seed, "data": self.manifest.hash,
            "left_out": [list(rows) for rows in self._left_out],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`. UserError if it belongs to other data or another seed."""
        current = self.state_dict()
        for name, meaning in (("data", "other data"), ("seed", "another seed")):
            if state[name] != current[name]:
                raise UserError(
                    f"the checkpoint was trained on {meaning} ({name} {state[name]}, now {current[name]}); "
                    "resume with the same, or start a new run"
                )
        self._epoch, self._sample = state["epoch"], state["sample"]
        self._left_out = [(epoch, start, stop) for epoch, start, stop in state["left_out"]]
        self._iterator = None

    def close(self) -> None:
        """Stop the workers and release shared memory. A later `next_step` opens the data again at the same position."""
        if self._loader is not None:
            # Explicitly, since a stack trace may keep the loader alive until Python exits, which then takes long.
            self._loader.__del__()
        if self._rows is not None:
            self._rows.release()
        self._iterator = self._loader = self._rows = None

    @property
    def position(self) -> Position:
        """Where the next step begins: in the next epoch if this one has no complete step left, and after rows that are left out."""
        epoch, sample = self._epoch, self._sample
        while True:
            if sample + self.rows_per_step > self.samples_per_epoch:
                epoch, sample = epoch + 1, 0
            after = [
                stop for at, start, stop in self._left_out
                if at == epoch and start < sample + self.rows_per_step and sample < stop
            ]  # fmt: skip
            if not after:
                return epoch, sample
            sample = max(after)

    def _read(self, new_epoch: bool) -> list[Batch]:
        """The micro-batches of the step at the current position; `new_epoch` if it is the first one of its epoch."""
        if self._loader is None or self._rows is None:
            self._rows, self._loader = self._open()
        if self._iterator is None:
            self._rows.start_at(self._epoch, self._sample)
            self._iterator = iter(self._loader)
        elif new_epoch:
            self._rows.continue_with_next_epoch()
            self._iterator = iter(self._loader)
        batches = []
        for _ in range(self._accumulation):
            columns = next(
                self._iterator,
                {"error": ["the shards hold fewer samples than their manifest says; build the data again"]},
            )
            if "error" in columns:
                raise UserError(columns["error"][0])
            batch = collate(columns)
            check(batch, self.manifest, self._rows.where)
            batches.append(batch)
        return batches

    def _open(self) -> tuple[RowDataset, StreamingDataLoader]:
        """The dataset and its data loader, which starts the workers."""
        from sleeptrain.data.rows import RowDataset, StreamingDataLoader

        workers = self._data.workers
        rows = RowDataset(
            self._sources, batch=self._micro, shuffle=self._data.shuffle, seed=self._seed, weighted=True,
            rank=self._rank, world=self._world,
        )  # fmt: skip
        loader = StreamingDataLoader(
            rows,
            batch_size=self._micro,
            num_workers=workers,
            collate_fn=stack,  # workers send arrays through a pipe, but tensors through shared memory
            worker_init_fn=_delay_signals,
            # A fork server, which Python 3.14 has by default, would be the workers' parent, and a worker ends without its own.
            multiprocessing_context="fork" if workers and multiprocessing.get_start_method() == "forkserver" else None,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            # Seeds of workers, which nothing uses. From the global generator, every start of a reader would draw a number.
            generator=torch.Generator(),
        )
        return rows, loader


def _close(reader: weakref.ref[Reader]) -> None:
    """Close a reader, if it still exists."""
    existing = reader()
    if existing is not None:
        existing.close()


def _delay_signals(worker: int) -> None:
    """Makes a worker ignore or delay signals: one that is sent to all processes of a job must not end the workers first.

    When the training process is gone, however it ended, the worker is killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        signal_at_parents_death(signal.SIGKILL, parent.pid)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
