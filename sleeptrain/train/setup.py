"""From a job to something that can be trained: data, model, engine, and where the run stood."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from sleeptrain import checkpoint
from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader
from sleeptrain.engine.build import Engine, build_engine
from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.parallel.config import BatchLayout, batch_layout
from sleeptrain.parallel.gather import StateGatherer
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import Process
from sleeptrain.program import Program, Sleep, compile
from sleeptrain.train.build_model import looped_elements, make_forward, new_model
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import use_kernels
from sleeptrain.train.step import Forward

T = TypeVar("T")

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendor's data sheets, by a word of the device's name. Unknown devices have no MFU."""


ITS_OWN = ("data.cache", "data.workers")
"""What may differ from machine to machine."""
DIFFERENCES = 5
"""So many of them are named."""


@dataclass(frozen=True)
class Setup:
    """All that the loop works with. The job is complete: the data has said its vocabulary."""

    job: Job
    flat_config: dict[str, Any]
    folder: Path
    manifest: Manifest
    reader: Reader
    engine: Engine
    forward: Forward
    split: BatchLayout
    process: Process
    axes: MeshAxes
    step: int
    """Steps already done."""
    steps: int

    def flops(self, program: Program) -> float:
        """Model FLOPs of one row, forward and backward."""
        return _flops(self.job.model, program, self.job.sleep)

    def mfu(self, flops_per_second: float) -> float | None:
        """Share of the devices' peak that model FLOPs use; None where the peak is unknown."""
        peak = peak_of(self.job.train.precision)
        return flops_per_second / (peak * self.process.world) if peak else None

    def memory(self) -> int:
        """Peak bytes of this process: on the device, or resident on CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(precision: str) -> float | None:
    """FLOPs a second that this process's device can do at most in a precision; None where that is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None) if precision == "bf16" else None


@cache
def _flops(model: Model, program: Program, sleep: Sleep) -> float:
    return step_flops(model, program, sleep)


def open_reader(job: Job, process: Process) -> Reader:
    """The training data of this process. Raises UserError where it cannot be read or the batch does not divide."""
    data = init_mesh(job.mesh, process.rank, process.world).data
    split = split_batch(job, data.size)
    pieces = split.group * split.accumulation
    return Reader(
        job.data, micro=split.micro, accumulation=pieces, rank=data.rank, world=data.size, seed=job.train.seed
    )


def check_device(job: Job, device: torch.device) -> None:
    """Raise UserError where a job asks for what this process's device cannot do."""
    if job.train.cuda_graphs and device.type != "cuda":
        raise UserError(
            "train.cuda_graphs = true needs a GPU, and torch sees none here; train.cuda_graphs=false trains without"
        )


def set_up(job: Job, flat_config: dict[str, Any], folder: Path, reader: Reader, process: Process) -> Setup:
    """Build everything for a complete job and load the newest checkpoint of the run folder, if there is one.

    Raises UserError where ranks hold different data or programs, and where a checkpoint does not fit.
    """
    manifest, train = reader.manifest, job.train
    program = compile(job.sleep, manifest.windows, len(job.model.pattern))
    assert_same_on_all_ranks(
        process, {"the data's hash": manifest.hash[:12], "its length": manifest.length, "the program": program.key}
    )
    axes = init_mesh(job.mesh, process.rank, process.world)
    split = split_batch(job, axes.data.size)
    model, finalize_grads = new_model(job, axes, job.model.deltanet.horizon or manifest.length, process.device)
    use_kernels(model, train, manifest.windows, split.micro, process)
    engine = build_engine(
        model, job.optim, precision=train.precision, zero=job.mesh.zero,
        micro_rows=split.micro * split.group, accumulation=split.accumulation, overrides=job.deepspeed, mpu=axes.mpu,
        parts=None if axes.mpu is None else StateGatherer(axes, getattr(model, "shards", None), process.device),
        looped=looped_elements(model, program, job.sleep) if job.mesh.zero == 3 else 0,
    )  # fmt: skip
    steps = train.steps or -(-(train.tokens or 0) // (train.batch * manifest.length))
    step, newest = 0, checkpoint.latest(folder / "checkpoints")
    if newest is not None:
        state = checkpoint.load(engine, newest, mesh=job.mesh)
        step = state["step"]
        reader.load_state_dict(state["data"])
        checkpoint.set_random_state(state["random"])
    forward = make_forward(job, axes, finalize_grads)
    return Setup(job, flat_config, folder, manifest, reader, engine, forward, split, process, axes, step, steps)


def split_batch(job: Job, data: int) -> BatchLayout:
    """How each of `data` processes goes through its rows; UserError where they do not divide."""
    try:
        return batch_layout(job.train.batch, job.train.micro, job.mesh, data)
    except ValueError as error:
        raise UserError(str(error)) from None


def assert_same_on_all_ranks(process: Process, mine: Mapping[str, Any]) -> None:
    """Raise UserError, of which rank 0 has the words, if ranks hold different values: they would deadlock, or learn different
    things. A collective; `mine` are values by dotted path, such as a recipe's, of which those in ITS_OWN may differ."""
    shared = {path: str(value) for path, value in mine.items() if path not in ITS_OWN}
    every: list[Any] = [None] * process.world
    dist.all_gather_object(every, sha256(repr(sorted(shared.items())).encode()).hexdigest())
    if len(set(every)) == 1:
        return
    dist.all_gather_object(every, shared)
    found = []
    for path in dict.fromkeys(path for values in every for path in values):
        ranks: dict[str, list[int]] = {}
        for rank, values in enumerate(every):
            ranks.setdefault(values.get(path, "not given"), []).append(rank)
        if len(ranks) > 1:
            said = (f"{value} on rank{'s' * (len(who) > 1)} {', '.join(map(str, who))}" for value, who in ranks.items())
            found.append(f"{path} is {' and '.join(said)}")
    more = f"; and {len(found) - DIFFERENCES} more" if len(found) > DIFFERENCES else ""
    message = f"ranks were started differently: {'; '.join(found[:DIFFERENCES])}{more}; start all with the same recipe, overrides and data"
    raise UserError([message] if process.rank == 0 else [])


def on_first_rank(process: Process, do: Callable[[], T]) -> T:
    """What `do` returns on rank 0, on every rank. A UserError of rank 0 ends all, so that none waits for ever; rank 0 says it."""
    said: list[Any] = [_attempt(do) if process.rank == 0 else None]
    if process.world > 1:
        dist.broadcast_object_list(said, src=0)
    result, errors = said[0]
    _raise_on_all(process, errors)
    return cast(T, result)


def on_every_rank(process: Process, do: Callable[[], T]) -> T:
    """What `do` returns here. A UserError of any rank ends all; rank 0 says what all ranks had to say."""
    result, errors = _attempt(do)
    said: list[list[str]] = [errors] * process.world
    if process.world > 1:
        dist.all_gather_object(said, errors)
    alike = all(lines == said[0] for lines in said)
    _raise_on_all(process, said[0] if alike else [f"rank {rank}: {line}" for rank, e in enumerate(said) for line in e])
    return cast(T, result)


def _attempt(do: Callable[[], T]) -> tuple[T | None, list[str]]:
    """What `do` returns, and the errors of its UserError."""
    try:
        return do(), []
    except UserError as error:
        return None, error.errors


def _raise_on_all(process: Process, errors: list[str]) -> None:
    if errors:
        raise UserError(errors if process.rank == 0 else [])
