"""From a job to something that can be trained: data, model, engine, and where the run stood."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sleeptrain import checkpoint
from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader
from sleeptrain.engine.build import Engine, build
from sleeptrain.engine.recompute import recompute
from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Retain
from sleeptrain.program import Program, Sleep, compile
from sleeptrain.train.job import Job

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendor's data sheets, by a word of the device's name. Unknown devices have no MFU."""

POLICIES = {
    "none": Retain(),
    "pass": Retain(passes=recompute),
    "window": Retain(window=recompute, passes=recompute),
}


@dataclass(frozen=True)
class Setup:
    """All that the loop works with. The job is complete: the data has said its vocabulary."""

    job: Job
    flat_config: dict[str, Any]
    folder: Path
    manifest: Manifest
    reader: Reader
    engine: Engine
    retain: Retain
    rank: int
    world: int
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
        return flops_per_second / (peak * self.world) if peak and self.job.train.precision == "bf16" else None

    def memory(self) -> int:
        """Peak bytes of this process: on the device, or resident on CPU."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def _flops(model: Model, program: Program, sleep: Sleep) -> float:
    return step_flops(model, program, sleep)


def set_up(job: Job, flat_config: dict[str, Any], folder: Path, manifest: Manifest) -> Setup:
    """Build everything for a complete job and load the newest checkpoint of the run folder, if there is one.

    Process groups must be up. Raises UserError where the batch does not divide over the processes, and where ranks hold
    different programs.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    micro, accumulation = split_batch(job.train.batch, job.train.micro, world)
    model = LanguageModel(job.model)
    initialise(model, job.train.seed, job.model.deltanet.horizon or manifest.length)
    engine = build(
        model, job.optim, precision=job.train.precision, zero=job.mesh.zero, micro_rows=micro,
        accumulation=accumulation, overrides=job.deepspeed,
    )  # fmt: skip
    reader = Reader(
        job.data, split=None, micro=micro, accumulation=accumulation, rank=rank, world=world, seed=job.train.seed
    )
    program = compile(job.sleep, manifest.windows, len(job.model.pattern))
    agree(program, world)
    steps = job.train.steps or -(-job.train.tokens // (job.train.batch * manifest.length))
    newest = checkpoint.latest(folder / "checkpoints")
    step = 0
    if newest is not None:
        state = checkpoint.load(engine, newest)
        step = state["step"]
        reader.load_state_dict(state["data"])
    return Setup(
        job, flat_config, folder, manifest, reader, engine, POLICIES[job.train.retain], rank, world, step, steps
    )


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
