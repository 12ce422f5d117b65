"""From a job to something that can be trained: data, model, engine, and where the run stood."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sleeptrain import checkpoint
from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader
from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.engine.engine import Engine
from sleeptrain.model.config import Model
from sleeptrain.model.counts import step_flops
from sleeptrain.parallel.collectives import assert_same_on_all_ranks
from sleeptrain.parallel.config import BatchLayout, batch_layout
from sleeptrain.parallel.gather import StateGatherer
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import Process
from sleeptrain.program import Program, Sleep, compile
from sleeptrain.train.build_model import looped_elements, make_forward, new_model
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import use_kernels
from sleeptrain.train.step import Forward

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs a second from the vendor's data sheets, by a word of the device's name. Unknown devices have no MFU."""


MACHINE_SPECIFIC = ("data.cache", "data.workers")
"""Fields that may differ between ranks, since they describe a machine."""


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
    spec = EngineSpec(
        train.precision, job.mesh.zero, split.micro * split.group, split.accumulation, overrides=job.deepspeed, mpu=axes.mpu,
        state_gatherer=None if axes.mpu is None else StateGatherer(axes, getattr(model, "tp_layout", None), process.device),
        reused_elements=looped_elements(model, program, job.sleep) if job.mesh.zero == 3 else 0,
    )  # fmt: skip
    engine = build_engine(model, job.optim, spec)
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


def assert_same_config(process: Process, flat_config: Mapping[str, Any]) -> None:
    """Raise UserError on every rank unless all ranks read the same configuration, given by dotted path; a collective."""
    shared = {path: value for path, value in flat_config.items() if path not in MACHINE_SPECIFIC}
    assert_same_on_all_ranks(process, shared)
