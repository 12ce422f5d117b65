"""Selective recompute gives the values and gradients of a run without it, also where a product is changed in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sleeptrain.execute.products import checkpoint_contexts, record, replay


class AddedInPlace(torch.autograd.Function):
    """x @ weight + bias, where the bias is added to the product in place."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        out = x @ weight
        out += bias
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return gradient @ weight.t(), x.t() @ gradient, gradient.sum(0)


def in_a_function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(AddedInPlace.apply(x, weight, bias)) @ weight


def in_place(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x @ weight).mul_(2).add_(bias).tanh() @ weight


def to_a_part(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = x @ weight
    out[1:].add_(bias)
    return out.tanh() @ weight


def read_before(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = x @ weight
    doubled = out * 2
    return (out.add_(bias).tanh() * doubled) @ weight


def as_out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.no_grad():
        out = x @ weight
        torch.add(out, bias, out=out)
    return (out.tanh() * x) @ weight


def apart(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.linear(x, weight.t(), bias).tanh() @ weight


RUNS = [in_a_function, in_place, to_a_part, read_before, as_out, apart]


def inputs() -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=source).requires_grad_() for shape in ((3, 4), (4, 4), (4,))]


def gradients(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), of, materialize_grads=True))


@pytest.mark.parametrize("run", RUNS)
def test_replay_is_the_recorded_run_bit_for_bit(run) -> None:
    plain, recorded = inputs(), inputs()
    expected = run(*plain)
    with torch.no_grad():
        out, products = record(lambda: run(*recorded))
    assert len(products) == 2 and torch.equal(out, expected)
    again = replay(lambda: run(*recorded), products)
    assert torch.equal(again, expected)
    assert all(map(torch.equal, gradients(again, recorded), gradients(expected, plain)))


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_of_torch_replays_products(run) -> None:
    plain, selective = inputs(), inputs()
    out = checkpoint(run, *selective, use_reentrant=False, context_fn=checkpoint_contexts)
    assert torch.equal(out, run(*plain))
    assert all(map(torch.equal, gradients(out, selective), gradients(run(*plain), plain)))
