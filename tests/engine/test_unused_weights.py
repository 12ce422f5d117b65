"""Weights that a step, or one of its micro-batches, does not use have no part in its gradient, at any ZeRO stage."""

from __future__ import annotations

import importlib
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine import EngineSpec, Optim, build_engine
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run

USES = ((True, True), (False, False), (False, True), (True, False), (False, False))
"""Whether the two micro-batches of each step use the layer that only some do."""
SHARES = [sqrt(4 * (1 + (sum(used) / 2) ** 2)) for used in USES]
"""Norms of the gradients: 1 for each of the four elements of the layer that all use, and the mean of the uses for the other one."""


class Sometimes(nn.Module):
    """The sum of the outputs of a layer, and of those of another one if it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor, used: bool) -> Tensor:
        total = self.always(x).sum()
        return total + self.sometimes(x).sum() if used else total


def gradient_norms(zero: int, precision: str, patched: bool = True) -> list[float]:
    """The norm of the gradient of each step."""
    init_distributed()
    if not patched:
        module = importlib.import_module("sleeptrain.engine.engine")
        module.clear_unused_gradients = lambda _: lambda: None  # type: ignore[attr-defined]
    spec = EngineSpec(precision, zero=zero, micro_rows=1, accumulation=2)  # type: ignore[arg-type]
    engine = build_engine(Sometimes(), Optim(clip=0), spec)
    x = torch.ones(1, 2, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    norms = []
    for step in USES:
        for used in step:
            engine.backward(engine.module(x, used))
        norms.append(engine.step().grad_norm)
    return norms


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_unused_weights_have_no_part_in_the_gradient(zero: int, precision: str) -> None:
    for norms in run(gradient_norms, 2, zero, precision):
        assert norms == pytest.approx(SHARES, rel=1e-6)


@pytest.mark.slow
def test_zero_3_still_keeps_the_gradients_of_unused_weights() -> None:
    assert run(gradient_norms, 2, 3, "fp32", False)[0][1] == pytest.approx(SHARES[0])
