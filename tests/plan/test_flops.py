"""FLOPs of the plan and of the metrics against torch's counter, over a real forward and backward.

Counted: two FLOPs per multiply-add of every matrix product, forward and backward: projections, MLP, head, and the mixers as
`tests/model/plain_products.py` writes them (the convolution, the delta rule token by token, attention over the pairs that its mask
allows). Not counted, by the formulas and by the counter: norms, activations, softmax, decay, the embedding's look-up, the optimizer,
and what kernels compute beyond this (masked pairs of a tile, products within a chunk of the delta rule).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.model.counts import step_flops
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.model.trained import TrainedWeights, first_block, freeze, select
from sleeptrain.model.work import work_of_full_row
from sleeptrain.program import Evict, Gradient, Loop, Sleep, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, stage_blocks
from sleeptrain.train.throughput import recompute_flops
from tests.model import plain_products, toy

L, WINDOWS = 3, 3
EVERY, SLIDING = Loop(trigger="every"), Evict("sliding")
PROGRAMS: dict[str, tuple[str, Sleep, dict]] = {
    "hybrid": ("AGAG", Sleep(), {}),
    "two passes": ("AG", Sleep(passes=2), {}),
    "three passes, attention last": ("GAGA", Sleep(passes=3), {"tie": True}),
    "no convolution is carried": ("AG", Sleep(passes=2, evict=Evict(conv_carry=False)), {}),
    "every window sleeps": ("GA", Sleep(passes=2, loop=EVERY), {}),
    "sliding": ("AG", Sleep(evict=SLIDING, passes=2), {}),
    "sliding, every, attention last": ("GA", Sleep(passes=2, loop=EVERY, evict=SLIDING), {"tie": True}),
    "attention alone": ("AA", Sleep(loop=EVERY, evict=SLIDING), {}),
    "a short reach": ("AG", Sleep(loop=EVERY, evict=SLIDING), {"attention": {"window": 2, "gate": False}}),
    "delta rule alone": ("GG", Sleep(passes=2), {"deltanet": {"value_heads": 2, "conv": 2}}),
    "local attention": ("LA", Sleep(loop=EVERY, evict=SLIDING), {"attention": {"local": 2}}),
    "local attention last": ("GAL", Sleep(passes=2), {"attention": {"local": 2, "bias": True, "qk_norm": False}}),
    "dynamic convolution": ("GA", Sleep(passes=2), {"deltanet": {"generator": 5, "value_dim": 6, "eps": 1e-5}}),
    "dynamic convolution last, every": ("AG", Sleep(passes=2, loop=EVERY), {"deltanet": {"generator": 5, "conv": 2}}),
    "normed": ("GA", Sleep(passes=2, loop=Loop(feedback="normed")), {}),
    "embeddings": ("AG", Sleep(passes=3, loop=Loop(feedback="embeddings")), {}),
    "gated, scaled": ("GA", Sleep(passes=2, loop=Loop(feedback="gated", trigger="every")), {"residual_scale": 0.4}),
    "range": ("GAGA", Sleep(passes=2, loop=Loop(layers=(1, 3))), {"norm": "sandwich"}),
    "range, every": ("GAGA", Sleep(passes=2, loop=Loop(layers=(1, 3), trigger="every")), {}),
    "gradient of the last pass": ("AG", Sleep(passes=3, gradient=Gradient(passes=1)), {}),
    "gradient of the last pass, every, normed": (
        "AG", Sleep(passes=3, loop=Loop(feedback="normed", trigger="every"), gradient=Gradient(passes=1)), {},
    ),
    "gradient of each window": ("GA", Sleep(passes=2, loop=EVERY, gradient=Gradient(windows=1)), {}),
}  # fmt: skip


def model_of(layers: str, sleep: Sleep, changes: dict):
    """The toy model with changes of its sections."""
    base = toy.config()
    sections = {"attention": base.attention, "deltanet": base.deltanet}
    changes = {name: replace(sections[name], **value) if name in sections else value for name, value in changes.items()}
    return toy.model(layers, gated=sleep.gated, **changes)


def prepared(name: str):
    """The model, micro-batch, program and sleep of one of `PROGRAMS`. Under trigger `context` the last window is predicted."""
    layers, sleep, changes = PROGRAMS[name]
    model, sleep = model_of(layers, replace(sleep, window=L), changes), replace(sleep, window=L)
    every = sleep.loop.trigger == "every"
    layout = toy.windows(L, WINDOWS, lambda i: every or i == WINDOWS - 1)
    tokens, targets = toy.batch(layout, rows=1)
    program = compile(sleep, layout, len(model.layers))
    return model, MicroBatch(tokens, targets, model.zero_state(sleep, 1)), program, sleep


class NoModules(nullcontext):
    """In place of the counter's tracker of modules, which fails where a module runs inside an autograd function, and is slow."""

    parents = ("Global",)


def flop_counter() -> FlopCounterMode:
    """torch's counter, without figures by module."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    return counter


def gradients_of(model, loss: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of all weights."""
    model.zero_grad()
    loss.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_model_flops_are_those_of_the_products_that_are_computed(name, monkeypatch):
    model, batch, program, sleep = prepared(name)
    wanted = gradients_of(model, run(model, batch, program, sleep).nll.sum())
    plain_products.install(monkeypatch)
    with flop_counter() as counter:
        found = gradients_of(model, run(model, batch, program, sleep).nll.sum())
    torch.testing.assert_close(found, wanted)  # what is counted computes the model
    assert step_flops(model.config, program, sleep) == counter.get_total_flops()


@pytest.mark.parametrize("policy", ["none", "block", "pass", "window"])
def test_the_executor_computes_model_flops_and_those_of_recompute(policy, monkeypatch):
    model, batch, program, sleep = prepared("range, every")
    plain_products.install(monkeypatch)
    with flop_counter() as counter:
        gradients_of(model, CheckpointedExecutor(model, [batch], program, sleep, policy).run()[0].nll.sum())
    stages = stage_blocks(sleep, len(model.layers))
    flops = recompute_flops(model.config, program, stages, RECOMPUTE_POLICIES[policy], model.config.tie)
    repeated = float((flops * work_of_full_row(program)).sum())
    assert counter.get_total_flops() == step_flops(model.config, program, sleep) + repeated
    assert (repeated > 0) == (policy != "none")


FROZEN = {
    "range, every": ["layers.G"],
    "sliding": ["layers.2.mixer", "head"],
    "dynamic convolution last, every": ["!embed", "!layers.A"],
    "embeddings": ["layers.*.mlp"],
    "hybrid": ["norm", "layers.3.norm1"],
    "gradient of the last pass": ["layers.1"],
}
"""Trained weights by program."""


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_weights_have_no_products_of_their_gradients(name, monkeypatch):
    """Autograd computes what is counted, and so does the executor, except that it leaves out the gradient of detached features."""
    layers, sleep, changes = PROGRAMS[name]
    monkeypatch.setitem(PROGRAMS, name, ((layers * 2)[:4], sleep, changes))
    found = []
    plain_products.install(monkeypatch)
    for forward in (run, lambda *parts: CheckpointedExecutor(parts[0], [parts[1]], *parts[2:], "none").run()[0]):
        model, batch, program, sleep = prepared(name)
        names = select(tuple(FROZEN[name]), model.config, sleep.gated)
        trained = TrainedWeights(names, first_block(names, model.config, sleep))
        freeze(model, trained)
        with flop_counter() as counter:
            forward(model, batch, program, sleep).nll.sum().backward()
        found.append(counter.get_total_flops())
    counted = step_flops(model.config, program, sleep, trained)
    assert found[0] == counted < step_flops(model.config, program, sleep)
    assert found[1] < counted if name == "gradient of the last pass" else found[1] == counted
