"""Processes that share the tokens between layers, against one process that has them all: gradients tensor by tensor."""

import pytest
import torch

from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
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

LAYOUT, LAST = toy.windows(4, 3), toy.windows(4, 3, targets=lambda i: i == 2)
CASES = {
    "every, tied, padding": (Sleep(window=4, loop=Loop(trigger="every")), LAYOUT, {"tie": True}, True),
    "normed, sandwich": (Sleep(window=4, loop=Loop(feedback="normed")), LAST, {"norm": "sandwich"}, False),
    "sliding, range": (
        Sleep(window=4, loop=Loop(layers=(1, 3), trigger="every"), evict=Evict("sliding")), LAYOUT, {}, True),
    "two passes, range, embeddings": (
        Sleep(window=4, loop=Loop(layers=(1, 3), feedback="embeddings", trigger="every"), gradient=Gradient(passes=2)), LAYOUT, {}, False),
}  # fmt: skip


def neutral_no_more(model, name, whole):
    """The same values on every process: norms that are neutral would hide a gradient that was forgotten."""
    generator = torch.Generator().manual_seed(len(name))
    return whole + 0.3 * torch.randn(whole.shape, generator=generator) if "norm" in name or "out" in name else whole


def models(config, axis):
    """A whole model and this process's share of it."""
    whole, mine = LanguageModel(config), TensorParallelModel(config, axis, share_tokens=True)
    initialise(whole, 0, 64)
    mine.initialise(0, 64)
    with torch.no_grad():
        for name, p in whole.named_parameters():
            p.copy_(neutral_no_more(whole, name, p))
            mine.get_parameter(name).copy_(mine.shards.cut(name, p))
    return whole.double(), mine.double()


def taped(model, case, policy, finalize_grads=None):
    """What a case leaves behind, its gradients, and the bytes of features kept for backward."""
    sleep, layout, _, padding = case
    tokens, targets = toy.batch(layout, rows=3)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    if padding:
        # Of an uneven number of tokens, also across the border between two processes.
        valid[0, :3] = valid[1, 5:6] = False
        targets[~valid] = -100
    rows = MicroBatch(tokens, targets, model.zero_state(sleep, 3), valid if padding else None)
    tape = CheckpointedExecutor(
        model,
        [rows],
        compile(sleep, layout, len(model.layers), 3),
        sleep,
        policy,
        options=ExecutorOptions(finalize_grads=finalize_grads),
    )
    (result,) = tape.run()
    features = tape.bytes()["h"]
    result.nll.square().sum().backward()
    return result, {name: p.grad for name, p in model.named_parameters()}, features


def compare():
    """Run by every process: what differs between its share, put together, and the whole model."""
    process = init_distributed()
    axis = init_mesh(Mesh(tensor=2, sequence=True), process.rank, process.world).tensor
    found = {}
    for name, case in CASES.items():
        whole, mine = models(toy.config(**case[2]), axis)
        expected, gradients, features = taped(whole, case, "pass")
        for policy in ("none", "block", "pass", "window"):
            result, ours, half = taped(mine, case, policy, mine.finalize_grads)
            ours = {key: mine.shards.whole(key, g) for key, g in ours.items()}
            state = [
                result.state[leaf.name] - expected.state[leaf.name].chunk(2, leaf.tensor_dim)[axis.rank]
                for leaf in expected.state.spec
                if leaf.tensor_dim is not None
            ]
            found[name, policy] = {
                "nll": (result.nll - expected.nll).abs().max().item() / expected.nll.abs().max().item(),
                "state": max(d.abs().max().item() for d in state if d.numel()),
                "residual": (result.residual - expected.residual).abs().max().item(),
                "gradients": {k: ((ours[k] - g).norm() / g.norm()).item() for k, g in gradients.items()},
                "features": half / features if policy == "pass" else 0.5,
            }
            for p in mine.parameters():
                p.grad = None
    return found


def test_two_processes_compute_the_gradients_of_one():
    for found in run(compare, 2):
        for name, case in found.items():
            assert case["nll"] < 1e-6 and case["state"] < 1e-12 and case["residual"] < 1e-6, (name, case)
            worst = max(case["gradients"], key=case["gradients"].get)
            # megatron-core's cross-entropy alone rounds to float32.
            assert case["gradients"][worst] < 1e-6, (name, worst, case["gradients"][worst])
            assert case["features"] == 0.5, name


@pytest.mark.parametrize("size", [1, 2, 4])
def test_slices_are_of_all_rows_and_come_back(size):
    x = torch.arange(3 * 8 * 2).view(3, 8, 2)
    assert torch.equal(split_tokens(x, size).chunk(size)[-1], x[:, 8 - 8 // size :])
    assert torch.equal(join_tokens(split_tokens(x, size), size), x)
