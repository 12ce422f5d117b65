"""Frozen weights: gradients of the trained ones, and those of the state, equal those of full training, whatever computes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS, COMPILED_WRAPPERS
from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import EagerReplay
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.model.trained import TrainedWeights, first_block, freeze, select
from sleeptrain.program import Evict, Gradient, Loop, Sleep, compile
from tests.model import toy

L, WINDOWS = 3, 3
EVERY = Loop(trigger="every")
PROGRAMS: dict[str, tuple[str, Sleep, dict]] = {
    "raw": ("AGAG", Sleep(passes=3, loop=EVERY), {"tie": True}),
    "context, clipped": ("GAGA", Sleep(passes=2, gradient=Gradient(clip_state=0.02)), {}),
    "one pass, sliding": ("GAGG", Sleep(loop=EVERY, evict=Evict("sliding"), gradient=Gradient(clip_state=0.02)), {}),
    "embeddings": ("AGAG", Sleep(passes=2, loop=Loop(trigger="every", feedback="embeddings")), {}),
    "range, last pass": ("GAGA", Sleep(passes=3, loop=Loop((1, 3), trigger="every"), gradient=Gradient(passes=1)), {}),
    "normed, sandwich": ("GAGA", Sleep(passes=3, loop=Loop(feedback="normed", trigger="every")), {"norm": "sandwich"}),
    "gated": ("GAAG", Sleep(passes=2, loop=Loop(feedback="gated", trigger="every")), {}),
}  # fmt: skip
SETS = {
    "a kind of block": ["layers.G"],
    "one block": ["layers.2"],
    "the last mixer": ["layers.3.mixer"],
    "all but the embedding": ["!embed"],
    "norm": ["norm"],
    "MLPs and embedding": ["layers.*.mlp", "embed"],
}
POLICIES = ("none", "selective", "block", "pass", "window")


def prepared(program: str, patterns: list[str] | None):
    """The model, with what `patterns` leave out frozen, and a function that makes the micro-batch of a program."""
    layers, sleep, changes = PROGRAMS[program]
    sleep, every = replace(sleep, window=L), sleep.loop.trigger == "every"
    model = toy.model(layers, gated=sleep.gated, **changes)
    layout = toy.windows(L, WINDOWS, lambda i: every or i == WINDOWS - 1)
    tokens, targets = toy.batch(layout)
    if patterns is not None:
        names = select(tuple(patterns), model.config, sleep.gated)
        freeze(model, TrainedWeights(names, first_block(names, model.config, sleep)))
    return model, lambda: MicroBatch(tokens, targets, model.zero_state(sleep, 2)), compile(sleep, layout, 4), sleep


def gradients(model, output) -> dict[str, torch.Tensor | None]:
    output.nll.sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def measured(program: str, patterns: list[str] | None, executor: str, policy: str, prepare=lambda model: None):
    """Gradients by name, and the squared norms of the gradients of S."""
    model, batch, compiled, sleep = prepared(program, patterns)
    prepare(model)
    if executor == "autograd":
        output = run(model, batch(), compiled, sleep, recompute=AUTOGRAD_WRAPPERS[policy])
    elif executor == "graphs":
        options = ExecutorOptions(graph_cache=GraphCache(EagerReplay()))
        for _ in range(4):
            model.zero_grad()
            [output] = CheckpointedExecutor(model, [batch()], compiled, sleep, policy, options=options).run()
            found = gradients(model, output)
        return found, output.adjoint.squares(torch.device("cpu"))
    else:
        [output] = CheckpointedExecutor(model, [batch()], compiled, sleep, policy).run()
    return gradients(model, output), output.adjoint.squares(torch.device("cpu"))


def check(found, expected, patterns, program):
    model, *_ = prepared(program, patterns)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(
                found[0][name], expected[0][name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert found[0][name] is None, name


SAMPLE = [("one pass, sliding", "one block"), ("raw", "a kind of block"), ("range, last pass", "the last mixer")]
"""What the ordinary suite runs; `make drills` runs all."""
CASES = [
    pytest.param(program, chosen, marks=[] if (program, chosen) in SAMPLE else pytest.mark.exhaustive)
    for program in PROGRAMS for chosen in SETS
]  # fmt: skip


@pytest.mark.parametrize(("program", "chosen"), CASES)
def test_gradients_of_trained_weights_are_those_of_full_training(program, chosen):
    patterns = SETS[chosen]
    expected = measured(program, None, "autograd", "none")
    states = []
    for executor in ("autograd", "executor"):
        for policy in POLICIES[:: 2 if (program, chosen) in SAMPLE else 1]:
            found = measured(program, patterns, executor, policy)
            check(found, expected, patterns, program)
            states.append(found[1])
    for squares in states:
        torch.testing.assert_close(squares, states[0], rtol=1e-9, atol=1e-14)
    model, *_ = prepared(program, patterns)
    blocks = [block.differentiated for block in model.layers]
    if all(blocks):  # otherwise the states of the lowest blocks have no gradient
        torch.testing.assert_close(states[0], expected[1], rtol=1e-9, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["a kind of block", "the last mixer"])
def test_cuda_graphs_and_compiled_blocks_give_the_same_gradients(chosen):
    program, patterns = "raw", SETS[chosen]
    expected = measured(program, None, "autograd", "none")
    check(measured(program, patterns, "graphs", "block"), expected, patterns, program)
    for policy, wrap in (("pass", None), ("none", COMPILED_WRAPPERS["selective"])):

        def compiled(model, wrap=wrap):
            compile_blocks(model, partitioned_eager(), wrap)

        check(measured(program, patterns, "executor", policy, compiled), expected, patterns, program)
