"""Tensor parallelism in two processes against one process: losses, state, and gradients tensor by tensor; and the layout."""

from dataclasses import replace

import pytest
import torch

from sleeptrain.errors import UserError
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.parallel import Mesh
from sleeptrain.parallel.mesh import MeshAxis, init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.parallel.tensor import TensorParallelModel
from sleeptrain.parallel.tp_layout import TPLayout
from sleeptrain.program import compile
from tests.distributed import run
from tests.model import toy
from tests.model.test_sleep import CASES
from tests.train.gather import gathered

NAMES = ["every", "normed", "sliding, range, every", "last two passes, range, embeddings", "gated", "clipped"]


def forward_backward(model, case, policy):
    """Output and gradients of a case, with padding in one row and several documents in all."""
    sleep, layout, passes = CASES[case]
    tokens, targets = toy.batch(layout, rows=3)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, :2] = False
    targets[~valid] = -100
    program = compile(sleep, layout, len(model.layers), passes)
    rows = MicroBatch(tokens, targets, model.zero_state(sleep, 3), valid, starts=toy.starts(layout, valid, rows=3))
    (result,) = CheckpointedExecutor(model, [rows], program, sleep, policy).run()
    result.nll.square().sum().backward()
    return result, {name: p.grad for name, p in model.named_parameters()}


def compare():
    """On every process: differences between the sharded model and the full one, by case."""
    process = init_distributed()
    axis = init_mesh(Mesh(tensor=2), process.rank, process.world).tensor
    differences = {}
    for name in NAMES:
        config = toy.config(tie=name == "every", **toy.OURO if name == "normed" else {})
        gated = CASES[name][0].gated
        full, sharded = LanguageModel(config, gated=gated), TensorParallelModel(config, axis, gated=gated)
        initialise(full, 0, 64)
        sharded.initialise(0, 64)
        sharded, full = sharded.double(), full.double()
        sharded.z_loss = full.z_loss = 0.0 if name == "every" else 0.2
        for key, p in sharded.named_parameters():
            assert torch.equal(gathered(sharded.tp_layout, key, p.detach()), full.get_parameter(key)), key
        expected, expected_grads = forward_backward(full, name, "none")
        result, grads = forward_backward(sharded, name, ("selective", "window")[NAMES.index(name) % 2])
        grads = {key: gathered(sharded.tp_layout, key, g) for key, g in grads.items()}
        state = {
            leaf.name: result.state[leaf.name] - expected.state[leaf.name].chunk(2, leaf.tensor_dim)[axis.rank]
            for leaf in expected.state.spec
            if leaf.tensor_dim is not None
        }
        differences[name] = {
            "nll": (result.nll - expected.nll).abs().max().item() / expected.nll.abs().max().item(),
            "state": max(d.abs().max().item() for d in state.values() if d.numel()),
            "gradients": {
                k: ((grads[k] - g).norm() / g.norm().clamp_min(1e-6)).item() for k, g in expected_grads.items()
            },
        }
    return differences


def test_two_processes_compute_the_gradients_of_one():
    for differences in run(compare, 2):
        for name, case in differences.items():
            assert case["nll"] < 1e-12 and case["state"] < 1e-12, name
            worst = max(case["gradients"], key=case["gradients"].get)
            assert case["gradients"][worst] < 1e-9, (name, worst, case["gradients"][worst])


def test_parameters_are_sharded_by_heads_and_the_vocabulary_is_padded():
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LanguageModel(toy.config()).named_parameters()}
    first, second = (TPLayout(shapes, MeshAxis(rank, 2, None)) for rank in (0, 1))
    for name, shape in shapes.items():
        full = torch.randn(shape)
        shards = [first.shard(name, full), second.shard(name, full)]
        dim = first.dim(name)
        if dim is None:
            assert "norm" in name and torch.equal(shards[0], full)
        else:
            assert torch.equal(torch.cat(shards, dim).narrow(0, 0, shape[0]), full)
    assert first.shard("embed.weight", torch.ones(11, 12)).shape == (64, 12)
    assert not second.shard("embed.weight", torch.ones(11, 12)).any()


def test_a_model_that_cannot_be_sharded_is_refused_by_name():
    with pytest.raises(UserError, match=r"mesh\.tensor = 4: .*kv_heads = 2.* can be 1, 2 "):
        TensorParallelModel(replace(toy.config(), layers="A"), MeshAxis(0, 4, None))
