"""Small models cut into stages, for tests that start processes."""

import copy

import torch

from sleeptrain.engine.process import init_distributed
from sleeptrain.parallel.edges import Edges
from sleeptrain.parallel.pipeline import Pipeline, placing
from sleeptrain.parallel.tape import Tape
from sleeptrain.parallel.units import Rows
from sleeptrain.program import POLICIES, compile, slices
from tests.model import toy


def micro_batches(model, sleep, layout, count, padded=False):
    """Groups of two rows each, with unequal numbers of targets; with padding in some if asked for."""
    found = []
    for seed in range(count):
        tokens, targets = toy.batch(layout, seed=seed + 1)
        valid = None
        if padded:
            valid = torch.ones(tokens.shape, dtype=torch.bool)
            valid[0, : seed % 3] = False
            targets[~valid] = -100
        found.append(Rows(tokens, targets, model.zero_state(sleep, 2), valid))
    return found


def loss_of(results, total):
    """Every position's own adjoint, so that none can be mistaken for another."""
    return sum(r.nll.square().sum() for r in results) / total


def cut(model, sleep, cuts, stage):
    """One stage of a whole model."""
    mine = copy.deepcopy(model)
    part = slices(sleep, len(model.layers), cuts)[stage]
    mine.keep(part.start, part.stop)
    return mine


def pipeline(sleep, depth, cuts, policy, tied, watch=None, edges=None, **options):
    """This process's stage, all processes being one pipeline."""
    world = torch.distributed.get_world_size()
    edges = edges or Edges([list(range(world))])
    return Pipeline(placing(slices(sleep, depth, cuts), POLICIES[policy], tied), edges, watch=watch, **options)


def differences(case, cuts, policies, group, edges, padded=False, dtype=torch.float64, **config):
    """Losses, states and gradients of this process's stage against the tape on the whole model, by policy."""
    sleep, layout, passes = case
    whole = toy.model(dtype=dtype, **config)
    depth = len(whole.layers)
    program = compile(sleep, layout, depth, passes)
    expected = copy.deepcopy(whole)
    wanted = Tape(expected, micro_batches(whole, sleep, layout, group, padded), program, sleep, "none").run()
    loss_of(wanted, group).backward()
    found = {}
    for policy in policies:
        mine = cut(whole, sleep, cuts, edges.stage)
        run = pipeline(sleep, depth, cuts, policy, bool(config.get("tie")), edges=edges)
        results = run.run(mine, micro_batches(mine, sleep, layout, group, padded), program)
        state = max(
            (result.state[leaf.name] - one.state[leaf.name]).abs().max().item()
            for result, one in zip(results, wanted, strict=True)
            for leaf in result.state.spec
            if leaf.dtype != torch.bool and result.state[leaf.name].numel()
        )
        residual = max(
            (r.residual - w.residual).abs().max().item() if len(r.residual) else 0.0
            for r, w in zip(results, wanted, strict=True)
        )
        loss_of(results, group).backward()
        gradients = dict(expected.named_parameters())
        found[policy] = {
            "nll": torch.stack([r.nll.detach() for r in results]) - torch.stack([w.nll.detach() for w in wanted]),
            "zero": not any(r.nll.any() for r in results),
            "state": state,
            "residual": residual,
            "residuals": len(results[0].residual),
            "gradients": {
                name: ((p.grad - gradients[name].grad).norm() / gradients[name].grad.norm().clamp_min(1e-9)).item()
                for name, p in mine.named_parameters()
            },
            "bits": {name: p.grad for name, p in mine.named_parameters()},
        }
    return found


def join():
    return init_distributed()
