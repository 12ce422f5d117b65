"""From a job to something that can be trained: data, model, engine, and where the run stood."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sleeptrain import checkpoint
from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader
from sleeptrain.engine.build import Engine, Whole, build
from sleeptrain.engine.process import Place
from sleeptrain.engine.recompute import recompute
from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result, Retain, run
from sleeptrain.parallel.mesh import Axes, join
from sleeptrain.parallel.tape import Tape
from sleeptrain.parallel.sums import Sums
from sleeptrain.parallel.units import Rows
from sleeptrain.program import Program, Sleep, compile
from sleeptrain.train.job import Job

T = TypeVar("T")

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendor's data sheets, by a word of the device's name. Unknown devices have no MFU."""

POLICIES = {
    "none": Retain(),
    "pass": Retain(passes=recompute),
    "window": Retain(window=recompute, passes=recompute),
}
"""What plain autograd keeps, by `train.retain`."""

AddUp = Callable[[Sums], None]
"""Completes the gradients of parameters that several processes share."""
Forward = Callable[[LanguageModel, Rows, Program], Result]
"""Runs a program over a micro-batch so that gradients flow back from the losses."""


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
    place: Place
    axes: Axes
    step: int
    """Steps already done."""
    steps: int

    def flops(self, program: Program) -> float:
        """Model FLOPs of one row, forward and backward."""
        return _flops(self.job.model, program, self.job.sleep)

    def mfu(self, flops_per_second: float) -> float | None:
        """Share of the devices' peak that model FLOPs use; None where the peak is unknown."""
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peak = next((p for word, p in PEAKS.items() if word in name), None)
        return flops_per_second / (peak * self.place.world) if peak and self.job.train.precision == "bf16" else None

    def memory(self) -> int:
        """Peak bytes of this process: on the device, or resident on CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def _flops(model: Model, program: Program, sleep: Sleep) -> float:
    return step_flops(model, program, sleep)


def open_reader(job: Job, place: Place) -> Reader:
    """The training data of this process. Raises UserError where it cannot be read or the batch does not divide."""
    data = join(job.mesh, place.rank, place.world).data
    micro, accumulation = split_batch(job.train.batch, job.train.micro, data.size)
    return Reader(
        job.data, micro=micro, accumulation=accumulation, rank=data.rank, world=data.size, seed=job.train.seed
    )


def set_up(job: Job, flat_config: dict[str, Any], folder: Path, reader: Reader, place: Place) -> Setup:
    """Build everything for a complete job and load the newest checkpoint of the run folder, if there is one.

    Raises UserError where ranks hold different programs, and where a checkpoint does not fit.
    """
    manifest, train = reader.manifest, job.train
    agree(compile(job.sleep, manifest.windows, len(job.model.pattern)), place.world)
    axes = join(job.mesh, place.rank, place.world)
    micro, accumulation = split_batch(train.batch, train.micro, axes.data.size)
    model, whole, add_up = new_model(job, axes, job.model.deltanet.horizon or manifest.length)
    engine = build(
        model.to(place.device), job.optim, precision=train.precision, zero=job.mesh.zero, micro_rows=micro,
        accumulation=accumulation, overrides=job.deepspeed, mpu=axes.mpu, whole=whole,
    )  # fmt: skip
    steps = train.steps or -(-(train.tokens or 0) // (train.batch * manifest.length))
    step, newest = 0, checkpoint.latest(folder / "checkpoints")
    if newest is not None:
        state = checkpoint.load(engine, newest)
        step = state["step"]
        reader.load_state_dict(state["data"])
        checkpoint.set_random_state(state["random"])
    return Setup(job, flat_config, folder, manifest, reader, engine, on_tape(job, add_up), place, axes, step, steps)


def new_model(job: Job, axes: Axes, horizon: int) -> tuple[LanguageModel, Whole | None, AddUp | None]:
    """This process's share of the model with its initial values, what puts its parameters together, and what completes
    their gradients. UserError where it cannot be shared."""
    if axes.tensor.size == 1:
        model = LanguageModel(job.model)
        initialise(model, job.train.seed, horizon)
        return model, None, None
    from sleeptrain.parallel.tensor import ShardedModel

    sharded = ShardedModel(job.model, axes.tensor)
    sharded.initialise(job.train.seed, horizon)
    return sharded, sharded.shards.whole, sharded.add_up


def on_tape(job: Job, add_up: AddUp | None) -> Forward:
    """The tape: what is trained with. It needs whole parameters, which ZeRO 1 and 2 leave on every process."""

    def forward(model: LanguageModel, rows: Rows, program: Program) -> Result:
        train, dtype = job.train, getattr(torch, job.optim.sum_dtype)
        return Tape(
            model, [rows], program, job.sleep, train.retain, offload=train.offload, sum_dtype=dtype, add_up=add_up
        ).run()[0]

    return forward


def by_autograd(job: Job) -> Forward:
    """Plain autograd with torch's checkpointing: what the tape is held against, and what could run under ZeRO 3."""

    def forward(model: LanguageModel, rows: Rows, program: Program) -> Result:
        retain = POLICIES[job.train.retain]
        return run(
            model, rows.tokens, rows.targets, rows.state, program, job.sleep, valid=rows.valid, retain=retain
        )  # fmt: skip

    return forward


def split_batch(batch: int, micro: int | None, world: int) -> tuple[int, int]:
    """Rows of a micro-batch and micro-batches a step, for each of `world` processes."""
    if batch % world:
        raise UserError(
            [
                f"train.batch = {batch}: does not divide over {world} processes; the nearest that does is {batch // world * world or world}"
            ]
        )
    share = batch // world
    micro = micro or share
    if share % micro:
        raise UserError(
            [
                f"train.micro = {micro}: does not divide the {share} rows of each of {world} processes (train.batch = {batch})"
            ]
        )
    return micro, share // micro


def agree(program: Program, world: int) -> None:
    """Raise UserError if ranks are about to run different programs: they would deadlock, or learn different things."""
    keys: list[str | None] = [None] * world
    dist.all_gather_object(keys, program.key)
    if len(set(keys)) > 1:
        raise UserError(
            [
                f"ranks hold different programs ({', '.join(map(str, keys))}): start all of them with the same recipe, overrides and data"
            ]
        )


def on_first_rank(place: Place, do: Callable[[], T]) -> T:
    """What `do` returns on rank 0, on every rank. A UserError of rank 0 is raised on all, so that none waits for ever."""
    said: list[Any] = [None]
    if place.rank == 0:
        try:
            said = [(do(), None)]
        except UserError as error:
            said = [(None, error.errors)]
    if place.world > 1:
        dist.broadcast_object_list(said, src=0)
    result, errors = said[0]
    if errors is not None:
        raise UserError(errors)
    return result
