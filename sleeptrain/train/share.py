"""What one process does of a job: its share of the model, and how it runs a program over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sleeptrain.config import UserError
from sleeptrain.engine.recompute import recompute
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import Result, Retain, run
from sleeptrain.parallel.config import cuts, unstaged
from sleeptrain.parallel.edges import Edges
from sleeptrain.parallel.mesh import Axes
from sleeptrain.parallel.pipeline import Pipeline, placing
from sleeptrain.parallel.recorders import CudaRecorder
from sleeptrain.parallel.replay import Replays
from sleeptrain.parallel.tape import AddUp, Tape
from sleeptrain.parallel.units import Rows
from sleeptrain.program import POLICIES as RETAIN
from sleeptrain.program import Pass, Program, Sleep, Slice, loop_range, slices
from sleeptrain.train.job import Job
from sleeptrain.train.step import Forward

POLICIES = {
    "none": Retain(),
    "block": Retain(block=recompute, head=recompute),
    "pass": Retain(passes=recompute, head=recompute),
    "window": Retain(window=recompute, passes=recompute),
}
"""What plain autograd keeps, by `train.retain`."""


def new_model(job: Job, axes: Axes, horizon: int, device: torch.device) -> tuple[LanguageModel, AddUp | None]:
    """This process's share of the model with its initial values, what completes the gradients of what several processes
    share. No process ever holds more than its share. UserError where the model cannot be shared."""
    if reason := unstaged(job.model, job.mesh):
        raise UserError(f"mesh.pipe = {job.mesh.pipe}: {reason}")
    add_up: AddUp | None = None
    with torch.device("meta"):
        if axes.tensor.size == 1:
            model = LanguageModel(job.model)
            fill: Callable[[int, int], None] = partial(initialise, model)
        else:
            from sleeptrain.parallel.tensor import ShardedModel

            model = sharded = ShardedModel(job.model, axes.tensor, job.mesh.sequence)
            fill, add_up = sharded.initialise, sharded.add_up
    part = stages_of(job)[axes.pipe.rank]
    model.keep(part.start, part.stop)
    model.to_empty(device=device)
    fill(job.train.seed, horizon)
    if job.model.tie and part.start > 0 and part.stop == len(job.model.pattern):
        # The first stage has it too, and there it is counted when DeepSpeed takes the norm of all gradients.
        setattr(model.embed.weight, "ds_pipe_replicated", True)  # noqa: B010
    return model, add_up


def stages_of(job: Job) -> tuple[Slice, ...]:
    """The blocks of every stage."""
    return slices(job.sleep, len(job.model.pattern), cuts(job.model, job.sleep, job.mesh.pipe))


def looped(model: LanguageModel, program: Program, sleep: Sleep) -> int:
    """Elements of the parameters that passes use again and again: those of the looped range, and of embedding and head,
    which are used in between. 0 where there is one pass in all."""
    if sum(isinstance(op, Pass) and op.layers == "loop" for op in program.ops) == 1:
        return 0
    first, stop = loop_range(sleep, len(model.layers))
    modules = nn.ModuleList(
        [*list(model.layers)[first:stop], model.embed] + ([] if model.head is None else [model.head])
    )
    return sum(parameter.numel() for parameter in modules.parameters())


def forward_of(job: Job, axes: Axes, add_up: AddUp | None) -> Forward:
    """How a program is run over a group of micro-batches, so that gradients flow back from the losses."""
    if job.mesh.zero == 3:
        return by_autograd(job)
    replays = Replays(CudaRecorder(), getattr(torch, job.optim.sum_dtype)) if job.train.graphs else None
    return on_tape(job, add_up, replays) if axes.pipe.size == 1 else in_stages(job, axes, add_up, replays)


def on_tape(job: Job, add_up: AddUp | None, replays: Replays | None = None) -> Forward:
    """The tape: what is trained with. It needs whole parameters, which ZeRO 1 and 2 leave on every process. With
    `replays`, which last as long as the run, passes are recorded and replayed."""

    def forward(model: LanguageModel, group: Sequence[Rows], program: Program) -> list[Result]:
        train, dtype = job.train, getattr(torch, job.optim.sum_dtype)
        return Tape(
            model, group, program, job.sleep, train.retain, offload=train.offload, sum_dtype=dtype, add_up=add_up,
            replays=replays,
        ).run()  # fmt: skip

    return forward


def in_stages(job: Job, axes: Axes, add_up: AddUp | None, replays: Replays | None = None) -> Forward:
    """The tape cut into the stages of a pipeline, of which this process runs one."""
    retain = replace(RETAIN[job.train.retain], offload=job.train.offload)
    placed = placing(stages_of(job), retain, job.model.tie)
    return Pipeline(placed, Edges(axes.pipes), getattr(torch, job.optim.sum_dtype), add_up, replays=replays).run


def by_autograd(job: Job) -> Forward:
    """Plain autograd with torch's checkpointing: what the tape is held against, and what trains under ZeRO 3, where a
    parameter is whole while its module runs and no longer. A weight's uses are summed in its own type."""

    def forward(model: LanguageModel, group: Sequence[Rows], program: Program) -> list[Result]:
        retain = POLICIES[job.train.retain]
        return [
            run(model, rows.tokens, rows.targets, rows.state, program, job.sleep, valid=rows.valid, retain=retain)
            for rows in group
        ]

    return forward
