"""Small models divided into pipeline stages, for tests that start processes."""

import copy
from typing import NamedTuple

import torch
import torch.distributed as dist

from sleeptrain.execute.autograd import run_with_autograd
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.pipeline import Pipeline
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import State
from sleeptrain.parallel.process import init_distributed
from sleeptrain.program import Loop, Sleep, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, stage_blocks
from tests.model import toy

EVERY = (Sleep(window=4, loop=Loop(trigger="every")), toy.windows(4, 3), 3)
"""`sleep` section, windows and passes of a case."""


class Unrolled(NamedTuple):
    """What the whole model makes of a micro-batch."""

    nll: torch.Tensor
    state: State
    residual: torch.Tensor


def program_of(case, depth):
    return compile(case[0], case[1], depth, case[2])


def p2p_channels(**options):
    """All processes as one pipeline."""
    init_distributed()
    return P2PChannels([list(range(dist.get_world_size()))], **options)


def micro_batches(model, sleep, layout, count, padded=False):
    """Micro-batches of two rows with different numbers of targets; if `padded`, some with padding, and some of several documents."""
    batches = []
    for seed in range(1, count + 1):
        tokens, targets = toy.batch(layout, seed=seed)
        valid = None
        if padded:
            valid = torch.ones(tokens.shape, dtype=torch.bool)
            valid[0, : seed % 3] = False
            targets[~valid] = -100
        starts = toy.starts(layout, valid) if padded and seed % 2 else {}
        batches.append(MicroBatch(tokens, targets, model.zero_state(sleep, 2), valid, starts=starts))
    return batches


def loss_of(results):
    """A loss whose gradient differs at every position, so that swapped positions show."""
    return sum(result.nll.square().sum() for result in results)


def unrolled(model, case, group, padded=False):
    """Losses, final states and residuals without their graphs, and gradients of the whole model, by plain autograd, one micro-batch
    at a time."""
    sleep, layout, passes = case
    model = copy.deepcopy(model)
    results = [
        toy.forward(model, sleep, layout, batch.tokens, batch.targets, passes, valid=batch.valid, starts=batch.starts)
        for batch in micro_batches(model, sleep, layout, group, padded)
    ]
    loss_of(results).backward()
    results = [Unrolled(result.nll.detach(), result.state.detach(), result.residual) for result in results]
    return results, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def stage_model(model, sleep, cuts, stage):
    """A copy of a whole model reduced to one stage."""
    local, blocks = copy.deepcopy(model), stage_blocks(sleep, len(model.layers), cuts)[stage]
    local.keep_stage(blocks.start, blocks.stop)
    return local


def pipeline(p2p, model, sleep, cuts, policy, **options):
    """The pipeline of a whole model that is cut before the blocks `cuts`."""
    blocks, tied = stage_blocks(sleep, len(model.layers), cuts), model.config.tie

    def build(program, group):
        return build_schedule(program, blocks, group, RECOMPUTE_POLICIES[policy], tied)

    return Pipeline(build, p2p, **options)


def run_stage(p2p, model, case, cuts, policy, group, padded=False):
    """Losses, states, residuals and gradients of this process's stage."""
    sleep, layout, passes = case
    local = stage_model(model, sleep, cuts, p2p.stage)
    program = compile(sleep, layout, len(model.layers), passes)
    batches = micro_batches(local, sleep, layout, group, padded)
    results = pipeline(p2p, model, sleep, cuts, policy).run(local, batches, program)
    loss_of(results).backward()
    return results, {name: p.grad for name, p in local.named_parameters()}


def differences(actual, expected):
    """The largest absolute differences in losses, states and residuals of a stage from those of the whole model, and the
    relative difference of every gradient. None for losses and residuals that the stage does not have."""
    largest = {"nll": None, "residual": None, "state": 0.0}
    for ours, whole in zip(actual[0], expected[0], strict=True):
        if ours.nll.any():
            largest["nll"] = max(largest["nll"] or 0.0, (ours.nll - whole.nll).abs().max().item())
        if len(ours.residual):
            difference = (ours.residual - whole.residual).abs().max().item()
            largest["residual"] = max(largest["residual"] or 0.0, difference)
        for leaf in ours.state.spec:
            a, b = (result.state[leaf.name].double() for result in (ours, whole))
            largest["state"] = max(largest["state"], (a - b).abs().max().item() if a.numel() else 0.0)
    largest["gradients"] = {
        name: ((g - expected[1][name]).norm() / expected[1][name].norm().clamp_min(1e-9)).item()
        for name, g in actual[1].items()
    }
    return largest


def run_observed(p2p, model, case, cuts, policy, group, observe):
    """One step of a stage; `observe(stage, event, subject)` is called at every event."""
    sleep, layout, _ = case
    local, program = stage_model(model, sleep, cuts, p2p.stage), program_of(case, len(model.layers))
    plan = pipeline(p2p, model, sleep, cuts, policy).plan(program, group, torch.device("cpu"))
    batches = micro_batches(local, sleep, layout, group)
    stage = StageExecutor(local, batches, plan, p2p, GradAccumulator({}, local.partial_grads()))
    stage.observer = stage.store.observer = lambda event, subject: observe(stage, event, subject)
    loss_of(run_with_autograd(stage)).backward()
    return stage
