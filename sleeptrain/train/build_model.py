"""This process's part of a model, and the forward function that runs a program over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial

import torch
from torch import Tensor, nn

from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS
from sleeptrain.execute.autograd import DEFAULT_OPTIONS, CheckpointedExecutor, ExecutorOptions
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.gradients import accumulate, compiled_accumulate
from sleeptrain.execute.graph_capture import CudaGraphRecorder
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.pipeline import Pipeline
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput, run
from sleeptrain.model.trained import freeze
from sleeptrain.parallel.collectives import any_of
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.program import Pass, Program, Sleep, loop_range
from sleeptrain.train.job import Job
from sleeptrain.train.layout import COMPILE, Layout
from sleeptrain.train.step import Forward
from sleeptrain.train.trained import trained_weights


def new_model(layout: Layout, axes: MeshAxes, horizon: int, device: torch.device) -> LanguageModel:
    """This process's part of the model with its initial values, frozen weights marked; a process never allocates more than its part.

    Raises UserError where the model cannot be divided over the tensor axis.
    """
    job, blocks = layout.job, layout.stages[axes.pipe.rank]
    with torch.device("meta"):
        if axes.tensor.size == 1:
            model = LanguageModel(job.model, gated=job.sleep.gated)
            fill: Callable[[int, int], None] = partial(initialise, model)
        else:
            from sleeptrain.parallel.tensor import TensorParallelModel

            model = sharded = TensorParallelModel(
                job.model, axes.tensor, job.mesh.sequence, gated=job.sleep.gated, traced=job.train.compiled is not None
            )
            fill = sharded.initialise
    model.z_loss = job.train.z_loss
    model.keep_stage(blocks.start, blocks.stop)
    model.to_empty(device=device)
    fill(job.train.seed, horizon)
    freeze(model, trained_weights(job))
    if job.model.tie and blocks.start > 0 and blocks.stop == len(job.model.pattern):
        # The first stage holds this matrix too. DeepSpeed counts it there when it takes the norm of all gradients.
        setattr(model.embed.weight, "ds_pipe_replicated", True)  # noqa: B010
    return model


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


def make_forward(
    layout: Layout, axes: MeshAxes, grad_buffers: Mapping[Tensor, Tensor], device: torch.device
) -> Forward:
    """The forward function of a run on a device: pipeline, checkpointed executor, or plain autograd under ZeRO 3.

    `grad_buffers`: `Engine.grad_buffers`.
    """
    job = layout.job
    if job.mesh.zero == 3:
        return autograd_forward(job)
    # On a CPU there are no launches to be saved.
    compiled = job.train.compiled and device.type == "cuda"
    add = compiled_accumulate(required=COMPILE not in layout.automatic) if compiled else accumulate
    graph_cache = None
    if job.train.graphed:
        anywhere = partial(any_of, axes.tensor, device) if axes.tensor.size > 1 else bool
        graph_cache = GraphCache(CudaGraphRecorder(), grad_buffers, add, anywhere)
    options = ExecutorOptions(grad_buffers, graph_cache, add)
    return checkpointed_forward(job, options) if axes.pipe.size == 1 else pipelined_forward(layout, axes, options)


def checkpointed_forward(job: Job, options: ExecutorOptions = DEFAULT_OPTIONS) -> Forward:
    """The checkpointed executor over the whole stack. It needs whole parameters, which ZeRO 1 and 2 leave on every process."""
    train = job.train

    def forward(
        model: LanguageModel, group: Sequence[MicroBatch], program: Program, *, predict: bool = False
    ) -> list[ProgramOutput]:
        return CheckpointedExecutor(
            model,
            group,
            program,
            job.sleep,
            train.schedule_policy,
            offload=train.offload,
            options=options,
            predict=predict,
        ).run()

    return forward


def pipelined_forward(layout: Layout, axes: MeshAxes, options: ExecutorOptions) -> Forward:
    """The circular pipeline, of which this process runs one stage."""
    return Pipeline(
        layout.build_schedule, P2PChannels(axes.pipes, timedelta(seconds=layout.job.mesh.timeout)), options
    ).run


def autograd_forward(job: Job) -> Forward:
    """Plain autograd with torch's activation checkpointing: the reference, and what trains under ZeRO 3.

    ZeRO 3 gathers a parameter while its module runs, and no longer. The gradients of a weight's uses are summed in the
    weight's own dtype.
    """
    recompute = AUTOGRAD_WRAPPERS[job.train.recompute_policy]

    def forward(
        model: LanguageModel, group: Sequence[MicroBatch], program: Program, *, predict: bool = False
    ) -> list[ProgramOutput]:
        if predict:
            with torch.no_grad():
                return [run(model, batch, program, job.sleep, predict="tokens") for batch in group]
        return [run(model, batch, program, job.sleep, recompute=recompute) for batch in group]

    return forward
