"""Writes checkpoints while training goes on: every rank its own part, then rank 0 the index and the final name."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleeptrain.checkpoint.carried import CarriedSlice
from sleeptrain.checkpoint.folder import KEEP_ALL, KeepPolicy, commit, latest, prune, staging_folder
from sleeptrain.checkpoint.format import (
    CARRIED,
    CONFIG,
    FileRecord,
    Index,
    Kind,
    kind_of,
    places_file,
    tensor_file,
    write_index,
    write_json,
    write_tensors,
    write_text,
)
from sleeptrain.checkpoint.place import Place, place_of_part
from sleeptrain.engine.engine import Engine
from sleeptrain.engine.state import MASTER, StateSlice
from sleeptrain.errors import ProcessLost, RunFailed

WRITING = timedelta(hours=6)
"""How long a rank waits for another that still writes its part. One that has ended is noticed at once."""
ASKING = 5.0
"""Seconds between two looks for ranks that do not run, while a save takes long."""


@dataclass(frozen=True)
class Part:
    """What one rank writes: a copy of its slices, which training does not change any more."""

    tensors: dict[Kind, dict[str, Tensor]]
    """Vectors on the CPU by file and name of the parameter or of one of its moments."""
    places: list[dict[str, Any]]
    """For every slice its tensor, its place, and the keys of its values."""
    state: dict[str, Any]
    """The rank's own state."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())


class Saver:
    """Saves the state of an engine into a folder of checkpoints, one save at a time. All methods are collectives.

    With `background`, a save copies the state to the host and returns; a thread of each rank writes the copy. Threads talk
    over a process group of their own, so that they never meet the collectives of training. `lost` names ranks that do not run
    any more; it is asked while a save takes long, since a rank may also write for long.
    """

    def __init__(
        self, engine: Engine, folder: Path, keep: KeepPolicy = KEEP_ALL, *, config: str = "", background: bool = True,
        lost: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._engine, self._folder, self._keep, self._config, self._lost = engine, folder, keep, config, lost
        self._background = background
        self._group = dist.new_group(backend="gloo", timeout=WRITING) if engine.process.world > 1 else None
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._outcome: BaseException | None = None
        self.seconds: float | None = None
        """Duration of the last complete save, with what was written in the background; None before the first."""

    def save(
        self,
        step: int,
        state: dict[str, Any],
        own_state: dict[str, Any],
        eval_loss: float | None = None,
        carried: Sequence[CarriedSlice] = (),
    ) -> None:
        """Write the checkpoint of `step`. Waits for the save before, and raises as `wait` does.

        `state` is equal on all ranks, and `own_state` is this rank's. Both must be JSON-serializable. `eval_loss` is the loss on
        held-out data, where the step was evaluated. `carried` is this rank's state of rows that go on in the next step.
        """
        self.wait()
        part, optimizer_step = self._snapshot(own_state, carried), self._engine.optimizer_step
        name = type(self._engine.optimizer).__name__.lower()
        index = Index(step, self._engine.process.world, name, optimizer_step, state, eval_loss=eval_loss)
        name = f"the checkpoint of step {step}"
        self._thread = threading.Thread(target=self._write, args=(index, part), name=name, daemon=True)
        self._thread.start()
        if not self._background:
            self.wait()

    def wait(self, patience: float | None = None) -> None:
        """Wait until the last save is complete, or `patience` seconds, after which it is given up: it leaves no checkpoint.

        Raises RunFailed on all ranks if a rank could not write its part, ProcessLost if one does not run any more.
        """
        if (thread := self._thread) is not None:
            thread.join(ASKING if patience is None else patience)
            while patience is None and thread.is_alive():
                if lost := self._lost():
                    thread.join(ASKING)  # at the end of a run a rank ends as soon as it knows that the save is complete
                    if not thread.is_alive():
                        break
                    self._thread = None
                    raise ProcessLost(f"{thread.name} cannot be completed: {lost}; the same command continues the run")
                thread.join(ASKING)
            self._thread = None
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            raise outcome

    def _snapshot(self, own_state: dict[str, Any], carried: Sequence[CarriedSlice]) -> Part:
        """A copy of this rank's slices on the host; of a slice that several ranks have, one rank copies."""
        tensors: dict[Kind, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        places = []
        for piece, place in placed_slices(self._engine, owned=True):
            keys = {key: f"{piece.name}/{key}" for key in piece.values}
            for key, values in piece.values.items():
                tensors[kind_of(key)][keys[key]] = self._copy(keys[key], values.narrow(0, 0, place.count))
            places.append({"tensor": piece.name, "place": asdict(place), "keys": keys})
        for row in carried:
            if row.owned:
                key = f"{row.name}/{CARRIED}"
                tensors.setdefault(CARRIED, {})[key] = self._copy(key, row.values)
                places.append({"tensor": row.name, "place": asdict(row.place), "keys": {CARRIED: key}})
        if self._engine.process.device.type == "cuda":
            torch.cuda.synchronize(self._engine.process.device)
        return Part(tensors, places, own_state)

    def _copy(self, key: str, values: Tensor) -> Tensor:
        """Copy to host memory that is allocated once, and pinned where there is a GPU."""
        host = self._host.get(key)
        if host is None or host.shape != values.shape:
            host = self._host[key] = torch.empty(values.shape, pin_memory=self._engine.process.device.type == "cuda")
        return host.copy_(values, non_blocking=True)

    def _write(self, index: Index, part: Part) -> None:
        """Write this rank's part, and on rank 0 the rest; in the background."""
        began = time.perf_counter()
        try:
            self._outcome = self._exchange(index, *self._write_part(index.step, part))
            self.seconds = time.perf_counter() - began
        except BaseException as error:
            self._outcome = error

    def _write_part(self, step: int, part: Part) -> tuple[dict[str, FileRecord], str | None]:
        """The records of the files that this rank wrote, and what went wrong."""
        staging, rank, records = staging_folder(self._folder, step), self._engine.process.rank, dict[str, FileRecord]()
        try:
            staging.mkdir(parents=True, exist_ok=True)
            for kind, tensors in part.tensors.items():
                file = tensor_file(rank, kind)
                records[file] = write_tensors(staging / file, tensors)
            slices = {"slices": part.places, "state": part.state}
            records[places_file(rank)] = write_json(staging / places_file(rank), slices)
            return records, None
        except Exception as error:  # of any kind: the other ranks wait for this one
            return {}, self._explain(error, staging, part.nbytes)

    def _exchange(self, index: Index, records: dict[str, FileRecord], problem: str | None) -> BaseException | None:
        """Collect what all ranks wrote on rank 0, which completes the checkpoint; the error that all ranks raise, or None."""
        ranks: list[Any] = [(records, problem)]
        if self._group is not None:
            ranks = [None] * index.processes
            dist.all_gather_object(ranks, (records, problem), group=self._group)
        problems = [text for _, text in ranks if text]
        if self._engine.process.rank == 0:
            if not problems:
                files = {name: record for wrote, _ in ranks for name, record in wrote.items()}
                problems = self._complete(replace(index, files=files))
            if problems:
                shutil.rmtree(
                    staging_folder(self._folder, index.step), ignore_errors=True
                )  # room for what is written next
        outcome = [problems]
        if self._group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        return RunFailed(outcome[0][0]) if outcome[0] else None

    def _complete(self, index: Index) -> list[str]:
        """Write index and configuration, rename the checkpoint, delete old ones; what went wrong."""
        staging = staging_folder(self._folder, index.step)
        try:
            config = {CONFIG: write_text(staging / CONFIG, self._config)} if self._config else {}
            write_index(staging, replace(index, files=index.files | config))
            prune(self._folder, self._keep, commit(self._folder, index.step))
        except Exception as error:
            return [self._explain(error, staging, 0)]
        return []

    def _explain(self, error: Exception, staging: Path, size: int) -> str:
        """What a failed save means: the path, the bytes wanted and free, the last good checkpoint."""
        last = latest(self._folder)
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.strerror:
            what = f"{error.strerror}: {error.filename or staging}"
        wanted = f" ({size:,} bytes wanted, {shutil.disk_usage(_existing(self._folder)).free:,} free)" if size else ""
        kept = f"the last good one is {last}" if last else "there is none yet"
        step = staging.name.removeprefix(".").removesuffix(".part")
        return (
            f"rank {self._engine.process.rank} cannot write checkpoint {step}: {what}{wanted}; "
            f"{kept}; the same command continues from it"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def placed_slices(engine: Engine, *, owned: bool) -> list[tuple[StateSlice, Place]]:
    """The slices of this rank with their places in the whole tensors.

    With `owned` without those that another rank has, too: tensor-parallel ranks share replicated parameters, data-parallel ranks frozen
    ones, the last pipeline stage shares tied embeddings with the first. Slices of padding alone are left out.
    """
    layout = getattr(engine.module, "tp_layout", None)
    parameters: Mapping[str, nn.Parameter] = dict(engine.module.named_parameters())
    placed = []
    for piece in engine.state_slices(owned=owned):
        dim = layout.dim(piece.name) if layout is not None else None
        if owned and layout is not None and dim is None and layout.axis.rank > 0:
            continue
        if owned and getattr(parameters[piece.name], "ds_pipe_replicated", False):
            continue
        shape, index = piece.shape, 0
        if layout is not None and dim is not None:
            shape, index = tuple(layout.shapes[piece.name]), layout.axis.rank
        place = place_of_part(shape, dim, index, piece.shape, piece.offset, piece.values[MASTER].numel())
        if place.count or not owned:
            placed.append((piece, place))
    return placed
