"""Tensor parallelism in two processes against one process: losses, state, and gradients tensor by tensor; and the layout."""

from dataclasses import replace

import pytest
import torch

from sleeptrain.errors import UserError
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.parallel import Mesh
from sleeptrain.parallel.mesh import MeshAxis, init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.parallel.tensor import TensorParallelModel
from sleeptrain.parallel.tp_layout import TPLayout
from sleeptrain.program import Sleep, compile
from tests.distributed import run
from tests.model import toy
from tests.model.test_sleep import CASES
from tests.recorded_graphs import recording
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


def collectives():
    """The collectives in the forward and backward graphs of the two kinds of block, by whether tokens are sharded."""
    process = init_distributed()
    axis = init_mesh(Mesh(tensor=2, sequence=True), process.rank, process.world).tensor
    found = {}
    for sharded in (False, True):
        graphs = []
        model = TensorParallelModel(replace(toy.config(), layers="GA"), axis, sharded, traced=True)
        model.initialise(0, 64)
        compile_blocks(model, recording(graphs))
        tokens, targets = toy.batch(toy.windows(4, 1))
        sleep = Sleep(window=4)
        rows = MicroBatch(tokens, targets, model.zero_state(sleep, len(tokens)))
        program = compile(sleep, toy.windows(4, 1), 2)
        (result,) = CheckpointedExecutor(model, [rows], program, sleep, "none").run()
        result.nll.sum().backward()
        targets = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
        found[sharded] = [[name.split(".")[1] for name in names if "_c10d_functional" in name] for names in targets]
    return found


def test_a_compiled_block_repeats_no_collective_in_its_backward():
    for found in run(collectives, 2):
        assert found[False] == [["all_reduce", "wait_tensor"] * 2] * 4
        gather_and_scatter = ["all_gather_into_tensor", "wait_tensor", "reduce_scatter_tensor", "wait_tensor"]
        assert found[True] == [gather_and_scatter * 2] * 4


def compare(traced):
    """On every process: differences between the sharded model and the full one, by case; with `traced` blocks are compiled."""
    process = init_distributed()
    axis = init_mesh(Mesh(tensor=2), process.rank, process.world).tensor
    differences = {}
    for name in NAMES[1:3] if traced else NAMES:
        config = toy.config(tie=name == "every", **toy.OURO if name == "normed" else {})
        gated = CASES[name][0].gated
        full = LanguageModel(config, gated=gated)
        sharded = TensorParallelModel(config, axis, gated=gated, traced=traced)
        initialise(full, 0, 64)
        sharded.initialise(0, 64)
        sharded, full = sharded.double(), full.double()
        sharded.z_loss = full.z_loss = 0.0 if name == "every" else 0.2
        for key, p in sharded.named_parameters():
            assert torch.equal(gathered(sharded.tp_layout, key, p.detach()), full.get_parameter(key)), key
        expected, expected_grads = forward_backward(full, name, "none")
        if traced:
            compile_blocks(sharded, partitioned_eager())
        policy = ("none" if traced else "selective", "window")[NAMES.index(name) % 2]
        result, grads = forward_backward(sharded, name, policy)
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


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_compute_the_gradients_of_one(traced):
    """`traced`: each block with its collectives is one graph of torch.compile, forward and backward."""
    for differences in run(compare, 2, traced):
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
