"""The head and the loss: tiled and untiled logits, tied and separate heads, eager and compiled."""

import importlib

import pytest
import torch

from sleeptrain.model.language import Head, cross_entropy
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, compile
from tests.model import toy

operator = importlib.import_module("sleep_kernels.linear_cross_entropy")


@pytest.fixture(params=[False, True], ids=["few", "in tiles"])
def tiles(request, monkeypatch):
    """Untiled logits, which are saved for backward, or several tiles, which are not."""
    if request.param:
        monkeypatch.setattr(operator, "_UNTILED_BYTES", {"cpu": 0})
        monkeypatch.setattr(operator, "_MIN_TILE", 4)
        monkeypatch.setattr(operator, "_TILE_ALIGNMENT", 1)
        monkeypatch.setattr(operator, "_TILE_BYTES", {"cpu": 100})
    return request.param


def features(model, rows=3, time=5):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, time, model.config.width, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, toy.VOCAB, (rows, time), generator=generator)
    targets[0, 1:4] = -100
    return h, targets


@pytest.mark.parametrize("tie", [False, True])
def test_losses_equal_cross_entropy_of_the_logits(tie, tiles):
    model = toy.model(tie=tie)
    h, targets = features(model)
    expected, actual = cross_entropy(model.logits(h), targets), model.nll(h, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = [h, model.norm.weight, model.embed.weight if tie else model.head.weight]
    grads = torch.rand_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, weights, grads) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tie", [False, True])
def test_losses_are_the_same_with_and_without_predictions(tie, tiles):
    model, layout = toy.model(tie=tie), toy.windows(4, 3)
    tokens, targets = toy.batch(layout)
    program = compile(Sleep(window=4), layout, len(model.layers), 1)
    batch = MicroBatch(tokens, targets, model.zero_state(Sleep(window=4), len(tokens)))
    results = [run(model, batch, program, Sleep(window=4), predict=predict) for predict in (None, "tokens")]
    torch.testing.assert_close(results[0].nll, results[1].nll)
    assert results[0].predicted is None and results[1].predicted.min() >= 0


def test_parameter_names():
    assert [name for name, _ in toy.model().named_parameters() if "layers" not in name] == [
        "embed.weight", "norm.weight", "head.weight",
    ]  # fmt: skip
    assert "head.weight" not in dict(toy.model(tie=True).named_parameters())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("known", [False, True])
def test_the_head_compiles_to_one_graph(known, backend, tiles):
    torch.manual_seed(0)
    head, x, targets = Head(8, 11), torch.randn(3, 5, 8, requires_grad=True), torch.randint(0, 11, (3, 5))
    before = head(x, targets).detach() if known else None
    results = []
    for function in (head, torch.compile(head, fullgraph=True, backend=backend)):
        loss = function(x, targets, before)
        results.append([loss, *torch.autograd.grad(loss.square().sum(), [x, head.weight])])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
