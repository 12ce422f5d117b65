"""This process's part of a model, and the forward function that runs a program over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

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
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.program import Pass, Program, Sleep, loop_range
from sleeptrain.train.job import Job
from sleeptrain.train.layout import Layout
from sleeptrain.train.step import Forward

AUTOGRAD_WRAPPERS = {
    "none": RecomputeWrappers(),
    "block": RecomputeWrappers(block=activation_checkpoint, head=activation_checkpoint),
    "pass": RecomputeWrappers(passes=activation_checkpoint, head=activation_checkpoint),
    "window": RecomputeWrappers(window=activation_checkpoint, passes=activation_checkpoint),
}
"""Activation checkpointing of plain autograd, by `train.recompute`."""


def new_model(
    layout: Layout, axes: MeshAxes, horizon: int, device: torch.device
) -> tuple[LanguageModel, FinalizeGrads | None]:
    """This process's part of the model with its initial values, and the function that completes partial gradients.

    A process never allocates more than its part. The function is None without tensor parallelism. Raises UserError where the
    model cannot be divided over the tensor axis.
    """
    job, blocks = layout.job, layout.stages[axes.pipe.rank]
    finalize_grads: FinalizeGrads | None = None
    with torch.device("meta"):
        if axes.tensor.size == 1:
            model = LanguageModel(job.model)
            fill: Callable[[int, int], None] = partial(initialise, model)
        else:
            from sleeptrain.parallel.tensor import TensorParallelModel

            model = sharded = TensorParallelModel(job.model, axes.tensor, job.mesh.sequence)
            fill, finalize_grads = sharded.initialise, sharded.finalize_grads
    model.keep(blocks.start, blocks.stop)
    model.to_empty(device=device)
    fill(job.train.seed, horizon)
    if job.model.tie and blocks.start > 0 and blocks.stop == len(job.model.pattern):
        # The first stage holds this matrix too. DeepSpeed counts it there when it takes the norm of all gradients.
        setattr(model.embed.weight, "ds_pipe_replicated", True)  # noqa: B010
    return model, finalize_grads


def looped_elements(model: LanguageModel, program: Program, sleep: Sleep) -> int:
    """Elements of the parameters that every pass uses: the looped range, and embedding and head, which run in between.

    0 where a program has a single pass.
    """
    if sum(isinstance(op, Pass) and op.layers == "loop" for op in program.ops) == 1:
        return 0
    first, stop = loop_range(sleep, len(model.layers))
    modules = nn.ModuleList(
        [*list(model.layers)[first:stop], model.embed] + ([] if model.head is None else [model.head])
    )
    return sum(parameter.numel() for parameter in modules.parameters())


def make_forward(layout: Layout, axes: MeshAxes, finalize_grads: FinalizeGrads | None) -> Forward:
    """The forward function of a run: pipeline, checkpointed executor, or plain autograd under ZeRO 3."""
    job = layout.job
    if job.mesh.zero == 3:
        return autograd_forward(job)
    graph_cache = None
    if job.train.cuda_graphs:
        graph_cache = GraphCache(CudaGraphRecorder(), getattr(torch, job.optim.sum_dtype))
    if axes.pipe.size == 1:
        return checkpointed_forward(job, finalize_grads, graph_cache)
    return pipelined_forward(layout, axes, finalize_grads, graph_cache)


def checkpointed_forward(
    job: Job, finalize_grads: FinalizeGrads | None, graph_cache: GraphCache | None = None
) -> Forward:
    """The checkpointed executor over the whole stack. It needs whole parameters, which ZeRO 1 and 2 leave on every process.

    `graph_cache` lasts as long as the run: passes are captured as CUDA graphs and replayed.
    """
    train, dtype = job.train, getattr(torch, job.optim.sum_dtype)

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        return CheckpointedExecutor(
            model, group, program, job.sleep, train.recompute, offload=train.offload, sum_dtype=dtype,
            finalize_grads=finalize_grads, graph_cache=graph_cache,
        ).run()  # fmt: skip

    return forward


def pipelined_forward(
    layout: Layout, axes: MeshAxes, finalize_grads: FinalizeGrads | None, graph_cache: GraphCache | None = None
) -> Forward:
    """The circular pipeline, of which this process runs one stage."""
    job = layout.job
    builder = circular_schedule(layout.stages, layout.recompute, job.model.tie)
    channels, dtype = P2PChannels(axes.pipes), getattr(torch, job.optim.sum_dtype)
    return Pipeline(builder, channels, dtype, finalize_grads, graph_cache=graph_cache).run


def autograd_forward(job: Job) -> Forward:
    """Plain autograd with torch's activation checkpointing: the reference, and what trains under ZeRO 3.

    ZeRO 3 gathers a parameter while its module runs, and no longer. The gradients of a weight's uses are summed in the
    weight's own type.
    """
    wrappers = AUTOGRAD_WRAPPERS[job.train.recompute]

    def forward(model: LanguageModel, group: Sequence[MicroBatch], program: Program) -> list[ProgramOutput]:
        return [
            run(model, rows.tokens, rows.targets, rows.state, program, job.sleep, valid=rows.valid, recompute=wrappers)
            for rows in group
        ]

    return forward
