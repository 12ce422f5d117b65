"""torch.compile of a block: no graph breaks, and the outputs and gradients of the eager block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sleeptrain.model.stack import Block
from sleeptrain.model.state import State, leaves
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Evict, Pass, Sleep, Window, compile
from tests.model.toy import config, model

ROWS, TIME = 2, 7
SLEEP = Sleep(window=TIME, evict=Evict(mode="sliding"))


def block_and_inputs(letter: str) -> tuple[Block, State, Pass, Tensor]:
    section = config(letter)
    block = model(letter, dtype=torch.float32).layers[0]
    assert isinstance(block, Block)
    torch.manual_seed(0)
    state = State.zeros(leaves(section, SLEEP), ROWS)
    full = {n: t for n, t in state.tensors.items() if t.numel() and t.is_floating_point()}
    state = state.replace({name: torch.rand_like(t).requires_grad_() for name, t in full.items()})
    passes, _ = next(iter(compile(SLEEP, [Window(0, TIME, True)], 1).by_window()))
    return block, state, passes[0], torch.randn(ROWS, TIME, section.width, requires_grad=True)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("letter", ["A", "G"])
def test_a_block_compiles_to_one_graph(letter: str, padding: bool, backend: str) -> None:
    block, state, op, h = block_and_inputs(letter)
    valid = torch.arange(TIME)[None] < torch.tensor([[TIME], [TIME - 2]]) if padding else None
    mask = TokenMask(valid, torch.arange(TIME)[None] == torch.tensor([[3], [0]]) if padding else None)
    inputs = [h, *(t for t in state.tensors.values() if t.requires_grad), *block.parameters()]
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend=backend)):
        out, changed = function(h, state, op, TIME, mask)
        outputs = [out, *(t for t in changed.values() if t.requires_grad)]
        results.append([*outputs, *torch.autograd.grad(sum(t.square().sum() for t in outputs), inputs)])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
