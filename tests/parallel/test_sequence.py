"""Sequence parallelism in two processes against one process: losses, state, residuals, and gradients tensor by tensor."""

import pytest
import torch

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.parallel import Mesh
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.parallel.sequence import join_tokens, split_tokens
from sleeptrain.parallel.tensor import TensorParallelModel
from sleeptrain.program import Evict, Gradient, Loop, Sleep, compile
from tests.distributed import run
from tests.model import toy
from tests.train.gather import gathered

LAYOUT, LAST = toy.windows(4, 3), toy.windows(4, 3, targets=lambda i: i == 2)
CASES = {
    "every, tied, padding": (Sleep(window=4, loop=Loop(trigger="every")), LAYOUT, {"tie": True}, True),
    "normed, Ouro": (Sleep(window=4, loop=Loop(feedback="normed")), LAST, toy.OURO, False),
    "gated, clipped": (
        Sleep(window=4, loop=Loop(feedback="gated", trigger="every"), gradient=Gradient(clip_state=0.1)), LAYOUT, {}, True),
    "sliding, range": (
        Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every"), evict=Evict("sliding")), LAYOUT, {}, True),
    "two passes, range, embeddings": (
        Sleep(window=4, loop=Loop(layers=(1, 3), feedback="embeddings", trigger="every"), gradient=Gradient(passes=2)), LAYOUT, {}, False),
}  # fmt: skip


def perturb_norms(name, full):
    """Random weights of norms and feedback, equal on every process: with the neutral initial ones a missing gradient term could go unseen."""
    generator = torch.Generator().manual_seed(len(name))
    return (
        full + 0.3 * torch.randn(full.shape, generator=generator)
        if "norm" in name or "out" in name or "feedback" in name
        else full
    )


def models(config, axis, gated, traced=False):
    """A full model and this process's shard of it."""
    full, sharded = (
        LanguageModel(config, gated=gated),
        TensorParallelModel(config, axis, sequence_parallel=True, gated=gated, traced=traced),
    )
    initialise(full, 0, 64)
    sharded.initialise(0, 64)
    with torch.no_grad():
        for name, p in full.named_parameters():
            p.copy_(perturb_norms(name, p))
            sharded.get_parameter(name).copy_(sharded.tp_layout.shard(name, p))
    return full.double(), sharded.double()


def forward_backward(model, case, policy):
    """Output and gradients of a case, and the bytes of features that are saved for backward."""
    sleep, layout, _, padding = case
    tokens, targets = toy.batch(layout, rows=3)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    if padding:
        # An odd number of tokens, which also crosses the boundary between two token slices.
        valid[0, :3] = valid[1, 5:6] = False
        targets[~valid] = -100
    starts = toy.starts(layout, valid, rows=3) if padding else {}
    rows = MicroBatch(tokens, targets, model.zero_state(sleep, 3), valid if padding else None, starts=starts)
    executor = CheckpointedExecutor(model, [rows], compile(sleep, layout, len(model.layers), 3), sleep, policy)
    (result,) = executor.run()
    features = executor.bytes()["h"]
    result.nll.square().sum().backward()
    return result, {name: p.grad for name, p in model.named_parameters()}, features


def compare(extent):
    """On every process: differences between the sharded model and the full one, by case and recompute policy.

    Of `extent` "some" each case has two of the five policies, of "all" all of them. "compiled": two cases with compiled blocks.
    """
    process = init_distributed()
    axis = init_mesh(Mesh(tensor=2, sequence=True), process.rank, process.world).tensor
    differences = {}
    for number, (name, case) in enumerate(list(CASES.items())[: 2 if extent == "compiled" else None]):
        full, sharded = models(toy.config(**case[2]), axis, case[0].gated, extent == "compiled")
        if extent == "compiled":
            compile_blocks(sharded, partitioned_eager())
        expected, expected_grads, features = forward_backward(full, case, "pass")
        others = ("none", "selective", "block", "window")
        chosen = {"all": others, "some": others[number % 3 : number % 3 + 1], "compiled": ()}[extent]
        for policy in ("pass", *chosen):
            result, grads, local_features = forward_backward(sharded, case, policy)
            grads = {key: gathered(sharded.tp_layout, key, g) for key, g in grads.items()}
            state = [
                result.state[leaf.name] - expected.state[leaf.name].chunk(2, leaf.tensor_dim)[axis.rank]
                for leaf in expected.state.spec
                if leaf.tensor_dim is not None
            ]
            differences[name, policy] = {
                "nll": (result.nll - expected.nll).abs().max().item() / expected.nll.abs().max().item(),
                "state": max(d.abs().max().item() for d in state if d.numel()),
                "residual": (result.residual - expected.residual).abs().max().item(),
                "gradients": {k: ((grads[k] - g).norm() / g.norm()).item() for k, g in expected_grads.items()},
                "features": local_features / features if policy == "pass" else 0.5,
            }
            for p in sharded.parameters():
                p.grad = None
    return differences


@pytest.mark.parametrize(
    "extent", ["some", *(pytest.param(each, marks=pytest.mark.slow) for each in ("compiled", "all"))]
)
def test_two_processes_compute_the_gradients_of_one(extent):
    for differences in run(compare, 2, extent):
        for name, case in differences.items():
            assert case["nll"] < 1e-6 and case["state"] < 1e-12 and case["residual"] < 1e-6, (name, case)
            worst = max(case["gradients"], key=case["gradients"].get)
            # The tolerance is for megatron-core's cross-entropy, which computes in float32; the rest is float64.
            assert case["gradients"][worst] < 1e-6, (name, worst, case["gradients"][worst])
            assert case["features"] == 0.5, name


@pytest.mark.parametrize("size", [1, 2, 4])
def test_join_tokens_inverts_split_tokens_and_a_chunk_is_a_slice_of_all_rows(size):
    x = torch.arange(3 * 8 * 2).view(3, 8, 2)
    assert torch.equal(split_tokens(x, size).chunk(size)[-1], x[:, 8 - 8 // size :])
    assert torch.equal(join_tokens(split_tokens(x, size), size), x)
