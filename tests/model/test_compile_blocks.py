"""Compiled blocks: losses, states and gradients are those of uncompiled ones, and all blocks of a kind share their graphs."""

import copy
from collections import Counter

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from sleeptrain.execute.activation_checkpoint import saving_products
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.gradients import compiled_accumulate
from sleeptrain.execute.products import is_product
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import compile
from tests.model import toy
from tests.model.test_sleep import CASES
from tests.recorded_graphs import recording

NAMES = ("every", "sliding, range, every", "gated", "last two passes, range, embeddings", "horizon of one window")


def results_of(model, case, policy, padded=False):
    """Losses, residuals and states, and the gradients by name."""
    sleep, layout, passes = case
    tokens, targets = toy.batch(layout)
    valid = None
    if padded:
        valid = torch.ones(tokens.shape, dtype=torch.bool)
        valid[0, :2] = valid[1, -3:] = False
        targets[~valid] = -100
    starts = toy.starts(layout, valid) if padded else {}
    batch = MicroBatch(tokens, targets, model.zero_state(sleep, 2), valid, starts=starts)
    (output,) = CheckpointedExecutor(
        model, [batch], compile(sleep, layout, len(model.layers), passes), sleep, policy
    ).run()
    model.zero_grad()
    output.nll.square().sum().backward()
    return [output.nll.detach(), output.residual, *output.state.flat()], {
        name: weight.grad.clone() for name, weight in model.named_parameters()
    }


def assert_equal(model, compiled, case, policy, padded):
    expected, expected_grads = results_of(model, case, policy, padded)
    actual, actual_grads = results_of(compiled, case, policy, padded)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for name, gradient in expected_grads.items():
        assert (actual_grads[name] - gradient).norm() < 1e-9 * gradient.norm().clamp_min(1e-6), name


def compiled_copy(model):
    model = copy.deepcopy(model)
    compile_blocks(model)
    return model


OTHERS = NAMES[1:]


@pytest.mark.slow
def test_compiled_blocks_equal_uncompiled_ones():
    """With the code of TorchInductor in float64, with and without padding and several documents in a row, under every policy."""
    model = toy.model()
    compiled = compiled_copy(model)
    for policy in ("window", "none", "block"):
        for padded in (False, True):
            assert_equal(model, compiled, CASES[NAMES[0]], policy, padded)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_graphs_of_compiled_blocks_equal_uncompiled_ones(name):
    """In other kinds of sleep: forward and backward are traced, divided, and run operator by operator."""
    model = toy.model(gated=CASES[name][0].gated)
    compiled = copy.deepcopy(model)
    compile_blocks(compiled, partitioned_eager())
    for padded in (False, True):
        assert_equal(model, compiled, CASES[name], "window", padded)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OTHERS)
def test_compiled_blocks_equal_uncompiled_ones_in_other_kinds_of_sleep(name):
    model = toy.model(gated=CASES[name][0].gated)
    compiled = compiled_copy(model)
    for padded in (False, True):
        assert_equal(model, compiled, CASES[name], "window", padded)


@pytest.mark.exhaustive
def test_compiled_blocks_with_the_options_of_jet_nemotron_equal_uncompiled_ones():
    """They are traced without a break, forward and backward; TorchInductor would take minutes for as many graphs."""
    model = toy.jet("LG")
    compiled = copy.deepcopy(model)
    compile_blocks(compiled, partitioned_eager())
    for padded in (False, True):
        assert_equal(model, compiled, CASES["every"], "window", padded)


def test_compiled_blocks_that_save_products_equal_uncompiled_ones():
    model = toy.model()
    compiled = copy.deepcopy(model)
    compile_blocks(compiled, partitioned_eager(), saving_products)
    assert_equal(model, compiled, CASES["sliding, range, every"], "none", True)


def test_compiled_blocks_that_save_products_compute_each_once():
    """Backward has two products for each of forward's, and runs neither attention nor the delta rule forward again."""
    graphs = []
    model = toy.model("AG")
    compile_blocks(model, recording(graphs), saving_products)
    results_of(model, CASES["every"], "none")
    for forward, backward in zip(graphs[::2], graphs[1::2], strict=True):
        products, repeated = operators(backward), operators(forward) & operators(backward)
        assert products["aten::mm"] == 2 * operators(forward)["aten::mm"] > 0
        assert set(repeated) == {"aten::mm"}, "only backward has products of its own"


def operators(graph):
    """How often a graph calls each product, by name."""
    called = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return Counter(operator.name() for operator in called if is_product(operator))


@pytest.mark.slow
def test_all_blocks_of_a_kind_share_their_graphs():
    case = CASES["context"]
    results_of(compiled_copy(toy.model()), case, "window")
    known = counters["stats"]["unique_graphs"]
    deep = toy.model("AGAGAG")
    assert_equal(deep, compiled_copy(deep), case, "window", False)
    assert known and counters["stats"]["unique_graphs"] == known


def fails(graph, inputs):
    raise RuntimeError("no such compiler\nand more")


@pytest.mark.parametrize(("wrap", "policy"), [(None, "block"), (saving_products, "none")])
def test_blocks_that_cannot_be_compiled_run_uncompiled_after_one_warning(caplog, wrap, policy):
    """Also those that save their products alone: what is wrapped runs uncompiled."""
    model = toy.model(dtype=torch.float64)
    other = copy.deepcopy(model)
    compile_blocks(other, fails, wrap, required=False)
    assert_equal(model, other, CASES["every"], policy, padded=False)
    assert [line.partition(" runs")[0] for line in caplog.messages] == [
        "train.compile = auto: every attention block", "train.compile = auto: every Gated DeltaNet block",
    ]  # fmt: skip
    assert all("BackendCompilerFailed: backend='fails' raised:" in line for line in caplog.messages)
    assert_equal(model, other, CASES["every"], policy, padded=True)
    assert len(caplog.messages) == 2


def test_gradients_are_added_uncompiled_where_that_cannot_be_compiled(caplog):
    totals = [torch.ones(3), torch.zeros(2, 2)]
    add = compiled_accumulate(fails, required=False)
    for _ in range(2):
        add(totals, [torch.ones(3, dtype=torch.bfloat16), torch.ones(2, 2)])
    assert torch.equal(totals[0], torch.full((3,), 3.0)) and torch.equal(totals[1], torch.full((2, 2), 2.0))
    assert len(caplog.messages) == 1 and "the accumulation of gradients runs uncompiled" in caplog.messages[0]
    with pytest.raises(TorchDynamoException, match="no such compiler"):
        compiled_accumulate(fails)(totals, [torch.ones(3), torch.ones(2, 2)])
