"""What one process does of a job: its share of the model, and how it runs a program over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sleeptrain.config import UserError
from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS
from sleeptrain.execute.autograd import DEFAULT_OPTIONS, CheckpointedExecutor, ExecutorOptions, FinalizeGrads
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import CudaGraphRecorder
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.pipeline import Pipeline, circular_schedule
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput, run
from sleeptrain.parallel.config import pipeline_obstacle, stage_cuts
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.program import Pass, Program, Sleep, loop_range
from sleeptrain.schedule import RECOMPUTE_POLICIES as RETAIN
from sleeptrain.schedule import StageBlocks, stage_blocks
from sleeptrain.train.job import Job
from sleeptrain.train.step import Forward


def new_model(
    job: Job, axes: MeshAxes, horizon: int, device: torch.device
) -> tuple[LanguageModel, FinalizeGrads | None]:
    """This process's share of the model with its initial values, what completes the gradients of what several processes
    share. No process ever holds more than its share. UserError where the model cannot be shared."""
    if reason := pipeline_obstacle(job.model, job.mesh):
        raise UserError(f"mesh.pipe = {job.mesh.pipe}: {reason}")
    finalize_grads: FinalizeGrads | None = None
    with torch.device("meta"):
        if axes.tensor.size == 1:
            model = LanguageModel(job.model)
            fill: Callable[[int, int], None] = partial(initialise, model)
        else:
            from sleeptrain.parallel.tensor import TensorParallelModel

            model = sharded = TensorParallelModel(job.model, axes.tensor, job.mesh.sequence)
            fill, finalize_grads = sharded.initialise, sharded.finalize_grads
    part = stages_of(job)[axes.pipe.rank]
    model.keep_stage(part.start, part.stop)
    model.to_empty(device=device)
    fill(job.train.seed, horizon)
    if job.model.tie and part.start > 0 and part.stop == len(job.model.pattern):
        # The first stage has it too, and there it is counted when DeepSpeed takes the norm of all gradients.
        setattr(model.embed.weight, "ds_pipe_replicated", True)  # noqa: B010
    return model, finalize_grads


def stages_of(job: Job) -> tuple[StageBlocks, ...]:
    """The blocks of every stage."""
    return stage_blocks(job.sleep, len(job.model.pattern), stage_cuts(job.model, job.sleep, job.mesh.pipe))


def looped_elements(model: LanguageModel, program: Program, sleep: Sleep) -> int:
    """Elements of the parameters that passes use again and again: those of the looped range, and of embedding and head,
    which are used in between. 0 where there is one pass in all."""
    if sum(isinstance(op, Pass) and op.layers == "loop" for op in program.ops) == 1:
        return 0
    first, stop = loop_range(sleep, len(model.layers))
    modules = nn.ModuleList(
        [*list(model.layers)[first:stop], model.embed] + ([] if model.head is None else [model.head])
    )
    return sum(parameter.numel() for parameter in modules.parameters())


def make_forward(job: Job, axes: MeshAxes, finalize_grads: FinalizeGrads | None) -> Forward:
    """How a program is run over a group of micro-batches, so that gradients flow back from the losses."""
    if job.mesh.zero == 3:
        return autograd_forward(job)
    sum_dtype = getattr(torch, job.optim.sum_dtype)
    graph_cache = GraphCache(CudaGraphRecorder(), sum_dtype) if job.train.cuda_graphs else None
    options = ExecutorOptions(sum_dtype, finalize_grads, graph_cache)
    return checkpointed_forward(job, options) if axes.pipe.size == 1 else pipelined_forward(job, axes, options)


def checkpointed_forward(job: Job, options: ExecutorOptions = DEFAULT_OPTIONS) -> Forward:
    """The checkpointed executor on a single stage. It needs whole parameters, which ZeRO 1 and 2 leave on every process."""

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        train = job.train
        return CheckpointedExecutor(
            model, group, program, job.sleep, train.recompute, offload=train.offload, options=options
        ).run()

    return forward


def pipelined_forward(job: Job, axes: MeshAxes, options: ExecutorOptions) -> Forward:
    """This process's stage of the circular pipeline."""
    recompute = replace(RETAIN[job.train.recompute], offload=job.train.offload)
    placed = circular_schedule(stages_of(job), recompute, job.model.tie)
    return Pipeline(placed, P2PChannels(axes.pipes), options).run


def autograd_forward(job: Job) -> Forward:
    """Plain autograd with torch's activation checkpointing: the reference, and the only way under ZeRO 3, where parameters
    are whole only while their module runs. The gradients of a weight's uses are summed in its own dtype."""

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        recompute = AUTOGRAD_WRAPPERS[job.train.recompute]
        return [run(model, batch, program, job.sleep, recompute=recompute) for batch in group]

    return forward
