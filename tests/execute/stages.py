"""Small models cut into stages, for tests that start processes."""

import copy

import torch
import torch.distributed as dist

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.pipeline import Pipeline, circular_schedule
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.parallel.process import init_distributed
from sleeptrain.program import compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, stage_blocks
from tests.model import toy


def edges(**options):
    """All processes as one pipeline."""
    init_distributed()
    return P2PChannels([list(range(dist.get_world_size()))], **options)


def micro_batches(model, sleep, layout, count, padded=False):
    """Micro-batches of two rows with unequal numbers of targets; with padding in some if asked for."""
    found = []
    for seed in range(1, count + 1):
        tokens, targets = toy.batch(layout, seed=seed)
        valid = None
        if padded:
            valid = torch.ones(tokens.shape, dtype=torch.bool)
            valid[0, : seed % 3] = False
            targets[~valid] = -100
        found.append(MicroBatch(tokens, targets, model.zero_state(sleep, 2), valid))
    return found


def loss_of(results):
    """Every position has an adjoint of its own, so that none can be mistaken for another."""
    return sum(result.nll.square().sum() for result in results)


def unrolled(model, case, group, padded=False):
    """Losses, final states, residuals and gradients of the whole model, by plain autograd, one micro-batch at a time."""
    sleep, layout, passes = case
    model = copy.deepcopy(model)
    results = [
        toy.forward(model, sleep, layout, rows.tokens, rows.targets, passes, valid=rows.valid)
        for rows in micro_batches(model, sleep, layout, group, padded)
    ]
    loss_of(results).backward()
    return results, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def taped(model, case, group, padded=False):
    """The same on the tape, which holds all blocks."""
    sleep, layout, passes = case
    model = copy.deepcopy(model)
    program = compile(sleep, layout, len(model.layers), passes)
    results = CheckpointedExecutor(model, micro_batches(model, sleep, layout, group, padded), program, sleep).run()
    loss_of(results).backward()
    return results, {name: p.grad for name, p in model.named_parameters()}


def share(model, sleep, cuts, stage):
    """One stage of a whole model."""
    mine, part = copy.deepcopy(model), stage_blocks(sleep, len(model.layers), cuts)[stage]
    mine.keep(part.start, part.stop)
    return mine


def pipeline(ways, model, sleep, cuts, policy, **options):
    """The pipeline of a whole model that is cut before the blocks `cuts`."""
    stages = stage_blocks(sleep, len(model.layers), cuts)
    return Pipeline(circular_schedule(stages, RECOMPUTE_POLICIES[policy], model.config.tie), ways, **options)


def staged(ways, model, case, cuts, policy, group, padded=False):
    """Losses, states, residuals and gradients of this process's stage."""
    sleep, layout, passes = case
    mine = share(model, sleep, cuts, ways.stage)
    program = compile(sleep, layout, len(model.layers), passes)
    rows = micro_batches(mine, sleep, layout, group, padded)
    results = pipeline(ways, model, sleep, cuts, policy).run(mine, rows, program)
    loss_of(results).backward()
    return results, {name: p.grad for name, p in mine.named_parameters()}


def distance(found, expected):
    """How far losses, states, residuals and gradients of a stage are from those of the whole model: largest absolute
    differences, and for every gradient the relative one. Losses and residuals are known to some stages only."""
    apart = {"nll": None, "residual": None, "state": 0.0}
    for one, all_of_it in zip(found[0], expected[0], strict=True):
        if one.nll.any():
            apart["nll"] = max(apart["nll"] or 0.0, (one.nll - all_of_it.nll).abs().max().item())
        if len(one.residual):
            apart["residual"] = max(apart["residual"] or 0.0, (one.residual - all_of_it.residual).abs().max().item())
        for leaf in one.state.spec:
            mine, whole = (r.state[leaf.name].double() for r in (one, all_of_it))
            apart["state"] = max(apart["state"], (mine - whole).abs().max().item() if mine.numel() else 0.0)
    apart["gradients"] = {
        name: ((g - expected[1][name]).norm() / expected[1][name].norm().clamp_min(1e-9)).item()
        for name, g in found[1].items()
    }
    return apart
