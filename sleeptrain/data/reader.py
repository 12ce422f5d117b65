"""Global steps of training data for one data-parallel rank: endless, shuffled by epoch, resumed exactly where they stopped.

The global batch of a step is a slice of the epoch's order (`order.py`). Its micro-batch `a` of rank `r` takes rows
(a * world + r) * micro onwards, so that micro-batches and ranks, in this order, concatenate to the slice. What is left at
the end of an epoch and fills no global batch is left out.
"""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sleeptrain.config import UserError
from sleeptrain.data.batch import Batch, check, collate
from sleeptrain.data.config import Data
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.store import Store

AHEAD = 16
"""Micro-batches ahead of which a remote shard begins to be fetched."""
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
        """Open the data (UserError if it cannot be read) and stand before the first step."""
        self.split = data.split if split is None else split
        self.rows_per_step = micro * accumulation * world
        self._accumulation = accumulation
        self._data = data
        self._rows = _MicroBatches(data, self.split, micro, accumulation, rank, world, seed)
        self._seed = seed
        self._epoch = 0
        self._sample = 0
        self._iterator: Iterator[dict[str, np.ndarray]] | None = None
        self._closes_at_exit = False
        if self.samples_per_epoch < self.rows_per_step:
            raise UserError(
                f"the {self.split} split has {self.samples_per_epoch} samples, fewer than one step's {self.rows_per_step} "
                f"({micro} rows x {accumulation} micro-batches x {world} ranks); use a smaller batch or more data"
            )

    @property
    def manifest(self) -> Manifest:
        """What is known of the sources."""
        return self._rows.store.manifest

    @property
    def samples_per_epoch(self) -> int:
        """Rows of an epoch, before the rest that fills no step is left out."""
        return self._rows.order.length

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self._place()[0]

    def next_step(self) -> list[Batch]:
        """The next `accumulation` micro-batches of this rank. UserError if a shard is damaged or contradicts the manifest."""
        self._epoch, self._sample = self._place()
        try:
            batches = self._read()
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
        """Stop the workers."""
        self._iterator = None

    def _place(self) -> tuple[int, int]:
        """Epoch and first row of the next step: where we are, or the next epoch if no whole step is left."""
        if self._sample + self.rows_per_step > self.samples_per_epoch:
            return self._epoch + 1, 0
        return self._epoch, self._sample

    def _read(self) -> list[Batch]:
        """The micro-batches of the step at which we stand."""
        if self._iterator is None:
            self._iterator = self._start()
        batches = []
        for _ in range(self._accumulation):
            columns = next(self._iterator)
            if "error" in columns:
                raise UserError(str(columns["error"]))
            batch = collate(columns, columns["row"])
            check(batch, self.manifest)
            batches.append(batch)
        return batches

    def _start(self) -> Iterator[dict[str, np.ndarray]]:
        self._rows.epoch, self._rows.sample = self._epoch, self._sample
        if self._data.workers and not self._closes_at_exit:
            # Otherwise Python would send SIGTERM to the workers at its end, and wait for as long as they go on.
            atexit.register(_close, weakref.ref(self))
            self._closes_at_exit = True
        loader = DataLoader(
            self._rows,
            batch_size=None,
            num_workers=self._data.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_outlive_signals,
            prefetch_factor=4 if self._data.workers else None,
        )
        return iter(loader)


class _MicroBatches(IterableDataset):
    """The micro-batches of one rank, from (epoch, sample) on and without end; each worker yields its share of them."""

    def __init__(self, data: Data, split: str, micro: int, accumulation: int, rank: int, world: int, seed: int) -> None:
        self.arguments = (data, split, micro, accumulation, rank, world, seed)
        self.store = Store(data, split)
        self.order = self.store.order(data, seed)
        self.epoch = 0
        self.sample = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Spawned workers open the data themselves; so nothing of the streaming library has to be unpickled."""
        return _MicroBatches, self.arguments, {"epoch": self.epoch, "sample": self.sample}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        with ThreadPoolExecutor(1) if self.store.remote else nullcontext() as pool:
            for number in count(worker, workers):
                if pool is not None:
                    pool.submit(self.store.prepare, self._numbers(number + AHEAD))
                rows = self._numbers(number)
                try:
                    columns = self.store.read(rows)
                except UserError as error:  # passed on as a value: an exception from a worker carries its stack trace
                    yield {"error": str(error)}
                    return
                yield columns | {"row": rows}

    def _numbers(self, number: int) -> np.ndarray:
        """Row numbers of this rank's micro-batch `number`, counted from the place where we began."""
        _, _, micro, accumulation, rank, world, _ = self.arguments
        step, part = divmod(number, accumulation)
        size = micro * accumulation * world
        left = (self.order.length - self.sample) // size
        if step < left:
            epoch, first = self.epoch, self.sample + step * size
        else:
            epochs, step = divmod(step - left, self.order.length // size)
            epoch, first = self.epoch + 1 + epochs, step * size
        first += (part * world + rank) * micro
        return self.order.rows(epoch, first, first + micro)


def _as_it_is(item: Any) -> Any:
    """Arrays stay arrays, which workers send through a pipe; tensors would go through shared memory."""
    return item


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
