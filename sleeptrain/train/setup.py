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
from sleeptrain.execute.activation_checkpoint import COMPILED_WRAPPERS
from sleeptrain.model.compile_blocks import compile_blocks, missing_compiler
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.collectives import assert_same_on_all_ranks
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.parallel.mesh import MeshAxes, init_mesh
from sleeptrain.parallel.process import Process
from sleeptrain.run.folder import CHECKPOINTS, CONFIG
from sleeptrain.run.watchdog import Watchdog
from sleeptrain.train.build_model import looped_elements, make_forward, new_model
from sleeptrain.train.guard import Guard
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import use_kernels
from sleeptrain.train.lanes import Lanes
from sleeptrain.train.layout import COMPILE, Layout
from sleeptrain.train.phases import StartClock
from sleeptrain.train.process_settings import apply_settings
from sleeptrain.train.rank_times import RankTimes
from sleeptrain.train.start import kernels_line
from sleeptrain.train.step import StepContext

MACHINE_SPECIFIC = ("data.cache", "data.cache_limit", "data.workers")
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
    saver: checkpoint.Saver
    guard: Guard
    watchdog: Watchdog
    """Not started."""
    clock: StartClock

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
    if job.train.graphed and device.type != "cuda":
        raise UserError(
            "train.cuda_graphs = true needs a GPU, and torch sees none here; train.cuda_graphs=false trains without"
        )
    if job.train.compiled and device.type == "cpu" and (obstacle := missing_compiler()):
        raise UserError(f"train.compile = true: {obstacle}; install g++, or train with train.compile=false")


def open_reader(job: Job, batch: BatchLayout, data_rank: int) -> Reader:
    """The reader of one data-parallel rank. Raises UserError where the data cannot be read or is less than one step."""
    return Reader(
        job.data,
        micro=batch.micro,
        accumulation=batch.micro_batches,
        rank=data_rank,
        world=batch.data,
        seed=job.train.seed,
        window=job.sleep.window,
    )


def set_up(
    layout: Layout,
    reader: Reader,
    process: Process,
    folder: Path,
    flat_config: dict[str, Any],
    init_from: Path | None = None,
    clock: StartClock | None = None,
) -> Setup:
    """Build model and engine and load the newest checkpoint of the run folder, or if there is none the weights of `init_from`.

    `clock` says how long each phase took.

    Raises UserError where ranks hold different data or programs, and where a checkpoint does not fit.
    """
    job, manifest, clock = layout.job, reader.manifest, clock or StartClock()
    apply_settings(job.train)
    assert_same_on_all_ranks(
        process,
        {"the data's hash": manifest.hash[:12], "its length": manifest.length, "the program": layout.program().key},
    )
    axes = init_mesh(job.mesh, process.rank, process.world)
    clock.lap("mesh    and its groups")
    model = new_model(layout, axes, job.model.deltanet.horizon or manifest.length, process.device)
    clock.lap("weights drawn")
    use_kernels(model, job.train, layout.windows, layout.batch.micro, process)
    clock.lap(kernels_line(model))
    engine = build_engine(model, job.optim, _engine_spec(layout, model, axes))
    if job.train.compiled:
        compile_blocks(model, wrap=COMPILED_WRAPPERS[job.train.compiled], required=COMPILE not in layout.automatic)
    clock.lap("engine  and optimizer built")
    lanes = new_lanes(layout, model) if job.data.lane is not None else None
    context = StepContext(
        engine, make_forward(layout, axes, engine.grad_buffers, process.device), layout, axes, manifest.pad, len(reader.names),
        RankTimes(process.rank, process.world, job.log.every, process.device), lanes,
    )  # fmt: skip
    limits = job.train.guard
    guard = Guard(limits.streak, limits.rollbacks, spike=limits.spike)
    found = resume(context, reader, guard, folder)
    if found is None and init_from is not None:
        checkpoint.load_initial_weights(engine, init_from)
    if found is not None or init_from is not None:
        clock.lap("weights loaded")
    keep = checkpoint.KeepPolicy(job.checkpoint.keep, job.checkpoint.keep_every)
    watchdog = Watchdog(folder, process.rank, process.world, job.mesh.timeout)
    saver = checkpoint.Saver(
        engine, folder / CHECKPOINTS, keep, config=_read(folder / CONFIG), background=job.checkpoint.background,
        lost=watchdog.lost,
    )  # fmt: skip
    return Setup(context, reader, process, folder, flat_config, found or 0, saver, guard, watchdog, clock)


def new_lanes(layout: Layout, model: LanguageModel) -> Lanes:
    """The lanes of this process before the first step."""
    job, batch = layout.job, layout.batch
    empty = model.zero_state(job.sleep, batch.micro)
    return Lanes(empty, batch.micro_batches, layout.length, job.model.attention)


def _engine_spec(layout: Layout, model: LanguageModel, axes: MeshAxes) -> EngineSpec:
    job, batch = layout.job, layout.batch
    return EngineSpec(
        job.train.precision, job.mesh.zero, batch.rows_per_backward, batch.accumulation, overrides=job.deepspeed, mpu=axes.mpu,
        reused_elements=looped_elements(model, layout.program(), job.sleep) if job.mesh.zero == 3 else 0,
    )  # fmt: skip


def resume(context: StepContext, reader: Reader, guard: Guard, folder: Path) -> int | None:
    """Load the newest whole checkpoint into engine, lanes, reader, guard and random generators; its step, None without one.

    A collective.
    """
    engine, lanes = context.engine, context.lanes
    found = checkpoint.newest_whole(engine.process, folder / CHECKPOINTS)
    if found is None:
        return None
    loaded = checkpoint.load(engine, *found)
    reader.load_state_dict(loaded.state["data"])
    guard.load_state_dict(loaded.state["guard"])
    if lanes is not None:
        slices = lanes.slices(context.axes)
        checkpoint.load_carried(engine.process, *found, slices)
        lanes.load(slices)
    if loaded.own_state is not None:
        checkpoint.set_random_state(loaded.own_state["random"])
    return loaded.step


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
