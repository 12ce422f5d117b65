"""Joint products of layers that read the same input equal separate ones, and weights that are apart have separate ones."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.execute.activation_checkpoint import saving_products
from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.compile_blocks import compile_blocks
from sleeptrain.model.joint import are_side_by_side, joint_weights, place_side_by_side
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.token_mask import NO_MASK
from sleeptrain.program import Evict, Loop, Sleep, compile
from tests.model import toy
from tests.recorded_graphs import recording

JOINT, SEPARATE = {"A": 4, "G": 6}, {"A": 8, "G": 10}
"""Products of a block in forward: o and down besides the joint ones, and z of Gated DeltaNet."""


SLEEP = Sleep(window=4, passes=2, loop=Loop(trigger="every"), evict=Evict(mode="sliding"))
LAYOUT = toy.windows(4, 2)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def apart(model):
    """A copy whose parameters have a storage each."""
    model = copy.deepcopy(model)
    for block in model.layers:
        assert not any(w is not None for w in (*block.joint_weights().mixer, block.joint_weights().mlp))
    return model


def together(model):
    for block in model.layers:
        assert None not in (*block.joint_weights().mixer, block.joint_weights().mlp)
    return model


def results_of(model, policy="none"):
    """Losses, state and gradients of a step."""
    tokens, targets = toy.batch(LAYOUT)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, :2] = valid[1, -3:] = False
    targets[~valid] = -100
    batch = MicroBatch(tokens, targets, model.zero_state(SLEEP, 2), valid, starts=toy.starts(LAYOUT, valid))
    program = compile(SLEEP, LAYOUT, len(model.layers))
    model.zero_grad()
    (output,) = CheckpointedExecutor(model, [batch], program, SLEEP, policy).run()
    output.nll.square().sum().backward()
    return [output.nll.detach(), *output.state.flat(), *(weight.grad.clone() for weight in model.parameters())]


def first_pass(model):
    """What the first block makes of a window: features and changed leaves."""
    op = compile(SLEEP, LAYOUT, len(model.layers)).ops[0]
    h = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True)
    return model.layers[0](h, model.zero_state(SLEEP, 2), op, SLEEP.window, NO_MASK)


def assert_close(actual, expected, tolerance=1e-10):
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm().clamp_min(1e-6)


@pytest.mark.parametrize("policy", ["none", "selective", "block"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_joint_products_equal_separate_ones(dtype, tolerance, policy):
    model = together(toy.model("AG", dtype=dtype))
    assert_close(results_of(model, policy), results_of(apart(model), policy), tolerance)


@pytest.mark.parametrize("letter", ["A", "G"])
def test_a_block_has_one_product_for_a_joint_weight(letter):
    model = together(toy.model(letter))
    for each, wanted in ((model, JOINT[letter]), (apart(model), SEPARATE[letter])):
        with Products() as products:
            features, _ = first_pass(each)
        assert products.count == wanted
        with Products() as products:
            features.sum().backward()
        # None but those of the gradient of each factor; attention has others on a CPU.
        assert products.count == 2 * wanted


@pytest.mark.parametrize("letter", [pytest.param("A", marks=pytest.mark.slow), "G"])
def test_compiled_blocks_have_joint_products(letter):
    model, compiled, graphs = apart(toy.model(letter)), together(toy.model(letter)), []
    compile_blocks(compiled, recording(graphs), saving_products)
    results = []
    for each in (compiled, model):
        torch.manual_seed(0)
        features, changed = first_pass(each)
        features.square().sum().backward()
        results.append([features.detach(), *changed.values(), *(p.grad for p in each.layers.parameters())])
    assert_close(*results, 1e-9)
    counts = [sum(node.target is torch.ops.aten.mm.default for node in graph.graph.nodes) for graph in graphs]
    assert counts == [JOINT[letter], 2 * JOINT[letter]]


def test_options_that_have_separate_products():
    """Biases and a dynamic convolution; gate and up are joint all the same."""
    model = toy.jet("LG")
    for block in model.layers:
        weights = block.joint_weights()
        assert weights.mlp is not None and not any(w is not None for w in weights.mixer)
    assert_close(results_of(model), results_of(copy.deepcopy(model)))


def replace_parameter(model):
    model.layers[1].mixer.k.weight = nn.Parameter(torch.randn_like(model.layers[1].mixer.k.weight))


def assign_data(model):
    model.layers[0].mixer.v.weight.data = torch.randn_like(model.layers[0].mixer.v.weight)


def assign_state(model):
    model.load_state_dict({n: torch.randn_like(w) for n, w in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [replace_parameter, assign_data, assign_state])
def test_a_parameter_that_moves_away_is_not_read_where_it_was(change):
    model = together(toy.model("AG"))
    results_of(model)
    change(model)
    assert any(w is None for block in model.layers for w in block.joint_weights().mixer)
    assert_close(results_of(model), results_of(apart(model)))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_state_dict({n: torch.randn_like(w) for n, w in model.state_dict().items()}),
        lambda model: model.to(torch.bfloat16).to(torch.float64),
        lambda model: model.float().double(),
    ],
    ids=["load_state_dict", "to", "cast"],
)
def test_weights_stay_together(change):
    model = together(toy.model("AG"))
    results_of(model)
    change(model)
    together(model)
    assert_close(results_of(model), results_of(apart(model)))


def test_weights_that_were_apart_are_not_moved_by_a_cast():
    """An optimizer may hold views of the storages where they are."""
    model = apart(toy.model("A"))
    before = [weight.data_ptr() for weight in model.parameters()]
    assert [weight.data_ptr() for weight in model.double().parameters()] == before


def test_layers_that_cannot_be_joined():
    make = partial(nn.Linear, 4, 3, bias=False)
    layers = [make(), make()]
    assert not are_side_by_side(layers)
    place_side_by_side(layers)
    (weight,) = joint_weights([layers])
    assert torch.equal(weight, torch.cat([layer.weight for layer in layers]))
    assert not are_side_by_side(layers[::-1])
    handle = layers[0].register_forward_hook(lambda *_: None)
    assert not are_side_by_side(layers), "a hook would not be called"
    handle.remove()
    others = [make(), nn.Linear(4, 3), nn.Linear(4, 3, bias=False, dtype=torch.float64)]
    addresses = [layer.weight.data_ptr() for layer in others]
    place_side_by_side(others)
    place_side_by_side(others[::2])
    assert [layer.weight.data_ptr() for layer in others] == addresses


def test_gradients_of_joint_weights_are_those_of_their_parts():
    """Of those that are trained; layers of which only some are have separate products."""
    torch.manual_seed(0)
    trained, frozen, partly = ([nn.Linear(3, n, bias=False, dtype=torch.float64) for n in (2, 1)] for _ in range(3))
    for layers in (trained, frozen, partly):
        place_side_by_side(layers)
    for layer in (*frozen, partly[0]):
        layer.weight.requires_grad_(False)
    first, second, third = joint_weights([trained, frozen, partly])
    assert first.requires_grad and not second.requires_grad and third is None
    x = torch.randn(5, 3, dtype=torch.float64)
    weights = [layer.weight for layer in trained]
    assert torch.autograd.gradcheck(lambda *_: x @ joint_weights([trained, frozen])[0].T, weights)


def test_a_cache_keeps_only_its_own_values():
    model = together(toy.model("A"))
    _, changed = first_pass(model)
    for name, leaf in changed.items():
        assert leaf.untyped_storage().nbytes() == leaf.nbytes, name
