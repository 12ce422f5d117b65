"""What one process does of a job: its share of the model, and how it runs a program over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sleeptrain.config import UserError
from sleeptrain.execute.activation_checkpoint import activation_checkpoint
from sleeptrain.execute.autograd import CheckpointedExecutor, FinalizeGrads
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import CudaGraphRecorder
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.pipeline import Pipeline, circular_schedule
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput, RecomputeWrappers, run
from sleeptrain.parallel.config import pipeline_obstacle, stage_cuts
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.program import Pass, Program, Sleep, loop_range
from sleeptrain.schedule import RECOMPUTE_POLICIES as RETAIN
from sleeptrain.schedule import StageBlocks, stage_blocks
from sleeptrain.train.job import Job
from sleeptrain.train.step import Forward

AUTOGRAD_WRAPPERS = {
    "none": RecomputeWrappers(),
    "block": RecomputeWrappers(block=activation_checkpoint, head=activation_checkpoint),
    "pass": RecomputeWrappers(passes=activation_checkpoint, head=activation_checkpoint),
    "window": RecomputeWrappers(window=activation_checkpoint, passes=activation_checkpoint),
}
"""What plain autograd keeps, by `train.recompute`."""


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
    model.keep(part.start, part.stop)
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
    graph_cache = (
        GraphCache(CudaGraphRecorder(), getattr(torch, job.optim.sum_dtype)) if job.train.cuda_graphs else None
    )
    return (
        checkpointed_forward(job, finalize_grads, graph_cache)
        if axes.pipe.size == 1
        else pipelined_forward(job, axes, finalize_grads, graph_cache)
    )


def checkpointed_forward(
    job: Job, finalize_grads: FinalizeGrads | None, graph_cache: GraphCache | None = None
) -> Forward:
    """The tape: what is trained with. It needs whole parameters, which ZeRO 1 and 2 leave on every process. With
    `replays`, which last as long as the run, passes are recorded and replayed."""

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        train, dtype = job.train, getattr(torch, job.optim.sum_dtype)
        return CheckpointedExecutor(
            model, group, program, job.sleep, train.recompute, offload=train.offload, sum_dtype=dtype, finalize_grads=finalize_grads,
            graph_cache=graph_cache,
        ).run()  # fmt: skip

    return forward


def pipelined_forward(
    job: Job, axes: MeshAxes, finalize_grads: FinalizeGrads | None, graph_cache: GraphCache | None = None
) -> Forward:
    """The tape cut into the stages of a pipeline, of which this process runs one."""
    recompute = replace(RETAIN[job.train.recompute], offload=job.train.offload)
    placed = circular_schedule(stages_of(job), recompute, job.model.tie)
    return Pipeline(
        placed, P2PChannels(axes.pipes), getattr(torch, job.optim.sum_dtype), finalize_grads, graph_cache=graph_cache
    ).run


def autograd_forward(job: Job) -> Forward:
    """Plain autograd with torch's checkpointing: what the tape is held against, and what trains under ZeRO 3, where a
    parameter is whole while its module runs and no longer. A weight's uses are summed in its own type."""

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        recompute = AUTOGRAD_WRAPPERS[job.train.recompute]
        return [
            run(model, rows.tokens, rows.targets, rows.state, program, job.sleep, valid=rows.valid, recompute=recompute)
            for rows in group
        ]

    return forward
