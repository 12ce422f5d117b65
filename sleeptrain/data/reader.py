"""Global steps of training data for one data-parallel rank: endless, shuffled by epoch, resumed exactly where they stopped.

mosaicml-streaming's dataset makes the order of an epoch from seed and epoch, and its data loader reads it. Row i of a global
step goes to rank i % world, there in order into the micro-batches; so a step has the same rows however it is split over
ranks, micro-batches and workers. What is left at the end of an epoch and fills no global batch is left out: the library
would repeat rows there, more or fewer with the number of ranks.
"""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sleeptrain.config import UserError
from sleeptrain.data.batch import Batch, check, collate, stack
from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.sources import open_sources

if TYPE_CHECKING:
    from streaming import StreamingDataLoader

    from sleeptrain.data.rows import RowDataset

GRACE = 30.0
"""Seconds that a worker goes on after SIGTERM, which SLURM sends to all processes at once: the main one saves first."""


class Reader:
    """Micro-batches for rank `rank` of `world` data-parallel ranks, step by step.

    micro           rows of a micro-batch
    accumulation    micro-batches of a step, for each rank
    seed            decides the order of all epochs

    Ranks that share the work on the same rows (tensor, pipeline) pass the same `rank`.
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
    ) -> None:
        """Look into the data (UserError if it cannot be read) and stand before the first step."""
        self.split = data.split if split is None else split
        self.rows_per_step = micro * accumulation * world
        self._data, self._micro, self._accumulation = data, micro, accumulation
        self._rank, self._world, self._seed = rank, world, seed
        self._sources = open_sources(data, self.split)
        self._epoch = 0
        self._sample = 0
        self._rows: RowDataset | None = None
        self._loader: StreamingDataLoader | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None
        # Else Python would send SIGTERM to the workers at its end, and wait for as long as they go on.
        atexit.register(_close, weakref.ref(self))
        if self.samples_per_epoch < self.rows_per_step:
            raise UserError(
                f"the {self.split} split has {self.samples_per_epoch} samples, fewer than one step's {self.rows_per_step} "
                f"({micro} rows x {accumulation} micro-batches x {world} ranks); use a smaller batch or more data"
            )

    @property
    def manifest(self) -> Manifest:
        """What is known of the sources."""
        return self._sources.manifest

    @property
    def samples_per_epoch(self) -> int:
        """Rows of an epoch, before the rest that fills no step is left out."""
        return self._sources.rows

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self._place()[0]

    def next_step(self) -> list[Batch]:
        """The next `accumulation` micro-batches of this rank. UserError if a shard is damaged or contradicts the manifest."""
        epoch, self._sample = self._place()
        begins, self._epoch = epoch > self._epoch, epoch
        try:
            batches = self._read(begins)
        except BaseException:
            self.close()  # workers that are only found by garbage collection take seconds to end
            raise
        self._sample += self.rows_per_step
        return batches

    def skip(self, steps: int) -> None:
        """Leave out the next `steps` steps."""
        for _ in range(steps):
            self._epoch, self._sample = self._place()
            self._sample += self.rows_per_step
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins, as JSON values. The same on all ranks, and for any number of ranks and workers."""
        return {"epoch": self._epoch, "sample": self._sample, "seed": self._seed, "data": self.manifest.hash}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of `state_dict`. UserError if it was made with other data or another seed."""
        mine = self.state_dict()
        for name, meaning in (("data", "other data"), ("seed", "another seed")):
            if state[name] != mine[name]:
                raise UserError(
                    f"the checkpoint was trained on {meaning} ({name} {state[name]}, now {mine[name]}); "
                    "continue with the same, or start anew"
                )
        self._epoch, self._sample = state["epoch"], state["sample"]
        self._iterator = None

    def close(self) -> None:
        """Stop the workers and give back what other processes can see; the next step would begin anew."""
        if self._loader is not None:
            # Not left to garbage collection: a stack trace may hold the loader until Python ends, which then takes long.
            self._loader.__del__()
        if self._rows is not None:
            self._rows.release()
        self._iterator = self._loader = self._rows = None

    def _place(self) -> tuple[int, int]:
        """Epoch and first row of the next step: where we are, or the next epoch if no whole step is left."""
        if self._sample + self.rows_per_step > self.samples_per_epoch:
            return self._epoch + 1, 0
        return self._epoch, self._sample

    def _read(self, begins: bool) -> list[Batch]:
        """The micro-batches of the step at which we stand; `begins` if it is the first of another epoch."""
        if self._loader is None or self._rows is None:
            self._rows, self._loader = self._open()
        if self._iterator is None:
            self._rows.start_at(self._epoch, self._sample)
            self._iterator = iter(self._loader)
        elif begins:
            self._rows.go_on()
            self._iterator = iter(self._loader)
        batches = []
        for _ in range(self._accumulation):
            columns = next(self._iterator, {"error": ["the data ends before its manifest says so; build it again"]})
            if "error" in columns:
                raise UserError(columns["error"][0])
            batch = collate(columns)
            check(batch, self.manifest, self._rows.where)
            batches.append(batch)
        return batches

    def _open(self) -> tuple[RowDataset, StreamingDataLoader]:
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
            collate_fn=stack,  # arrays, which workers send through a pipe; tensors would go through shared memory
            worker_init_fn=_outlive_signals,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
        )
        return rows, loader


def _close(reader: weakref.ref[Reader]) -> None:
    """Close a reader, if it still exists."""
    alive = reader()
    if alive is not None:
        alive.close()


def _outlive_signals(worker: int) -> None:
    """Let the main process decide when it is over: a signal to all processes of a job must not end its workers first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
