"""From a resolved layout to a run that can train: data, model, engine, and the step where the run stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sleeptrain import checkpoint
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader
from sleeptrain.engine.build import EngineSpec, build_engine
from sleeptrain.engine.engine import Engine
from sleeptrain.errors import UserError
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.collectives import assert_same_on_all_ranks
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.parallel.gather import StateGatherer
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import Process
from sleeptrain.train.build_model import looped_elements, make_forward, new_model
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import use_kernels
from sleeptrain.train.layout import Layout
from sleeptrain.train.step import StepContext

MACHINE_SPECIFIC = ("data.cache", "data.workers")
"""Fields that may differ between ranks, since they describe a machine."""


@dataclass(frozen=True)
class Setup:
    """A run that is ready to train."""

    context: StepContext
    reader: Reader
    process: Process
    folder: Path
    flat_config: dict[str, Any]
    """The configuration by dotted path, for W&B."""
    step: int
    """Steps already done."""

    @property
    def layout(self) -> Layout:
        """The resolved layout."""
        return self.context.layout

    @property
    def job(self) -> Job:
        """The complete job."""
        return self.layout.job

    @property
    def engine(self) -> Engine:
        """The engine, which holds model and optimizer."""
        return self.context.engine

    @property
    def manifest(self) -> Manifest:
        """The manifest of the data."""
        return self.reader.manifest


def assert_same_config(process: Process, values: Mapping[str, Any]) -> None:
    """Raise UserError where ranks were started with different configurations, machine-specific fields aside. A collective.

    `values` are the recipe's plain values by dotted path.
    """
    compared = {path: value for path, value in values.items() if path not in MACHINE_SPECIFIC}
    assert_same_on_all_ranks(process, compared)


def check_device(job: Job, device: torch.device) -> None:
    """Raise UserError where a job asks for what this process's device cannot do."""
    if job.train.cuda_graphs and device.type != "cuda":
        raise UserError(
            "train.cuda_graphs = true needs a GPU, and torch sees none here; train.cuda_graphs=false trains without"
        )


def open_reader(job: Job, batch: BatchLayout, data_rank: int) -> Reader:
    """The reader of one data-parallel rank. Raises UserError where the data cannot be read or is less than one step."""
    return Reader(
        job.data,
        micro=batch.micro,
        accumulation=batch.micro_batches,
        rank=data_rank,
        world=batch.data,
        seed=job.train.seed,
    )


def set_up(layout: Layout, reader: Reader, process: Process, folder: Path, flat_config: dict[str, Any]) -> Setup:
    """Build model and engine and load the newest checkpoint of the run folder, if there is one.

    Raises UserError where ranks hold different data or programs, and where a checkpoint does not fit.
    """
    job, manifest = layout.job, reader.manifest
    assert_same_on_all_ranks(
        process,
        {"the data's hash": manifest.hash[:12], "its length": manifest.length, "the program": layout.program().key},
    )
    axes = init_mesh(job.mesh, process.rank, process.world)
    model, finalize_grads = new_model(layout, axes, job.model.deltanet.horizon or manifest.length, process.device)
    use_kernels(model, job.train, layout.windows, layout.batch.micro, process)
    engine = build_engine(model, job.optim, _engine_spec(layout, axes, model, process))
    context = StepContext(engine, make_forward(layout, axes, finalize_grads), layout, axes, manifest.pad)
    return Setup(context, reader, process, folder, flat_config, _resume(engine, reader, job, folder))


def _engine_spec(layout: Layout, axes: MeshAxes, model: LanguageModel, process: Process) -> EngineSpec:
    job, batch, gatherer = layout.job, layout.batch, None
    if axes.mpu is not None:
        gatherer = StateGatherer(axes, getattr(model, "tp_layout", None), process.device)
    return EngineSpec(
        job.train.precision, job.mesh.zero, batch.rows_per_backward, batch.accumulation, overrides=job.deepspeed,
        mpu=axes.mpu, state_gatherer=gatherer,
        reused_elements=looped_elements(model, layout.program(), job.sleep) if job.mesh.zero == 3 else 0,
    )  # fmt: skip


def _resume(engine: Engine, reader: Reader, job: Job, folder: Path) -> int:
    """Load the newest checkpoint into engine, reader and random generators; the step it stands at, 0 without one."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return 0
    state = checkpoint.load(engine, newest, mesh=job.mesh)
    reader.load_state_dict(state["data"])
    checkpoint.set_random_state(state["random"])
    return int(state["step"])
