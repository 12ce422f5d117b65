"""Recomputing changes no bit of a gradient, and keeps only what went in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine import Optim
from sleeptrain.execute.activation_checkpoint import activation_checkpoint
from tests.distributed import run
from tests.engine.tiny import PASSES, Tiny, make_engine, train


class Stack(nn.Module):
    """Several layers used several times, passing on (features, {name: state}) as the real stack does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.runs = 0

    def layer(self, index: int, h: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.runs += 1
        s = state["s"] * 0.9 + torch.tanh(h).unsqueeze(-1) * torch.tanh(h).unsqueeze(-2)
        read = (s @ torch.tanh(h).unsqueeze(-1)).squeeze(-1)
        return h + torch.tanh(self.layers[index](h)) + 0.1 * read, {"s": s}

    def once(self, h: Tensor, state: dict[str, Tensor], nested: bool) -> tuple[Tensor, dict[str, Tensor]]:
        for index in range(len(self.layers)):
            if nested:
                h, state = activation_checkpoint(self.layer, index, h, state)
            else:
                h, state = self.layer(index, h, state)
        return h, state

    def forward(self, h: Tensor, outer: bool, nested: bool) -> Tensor:
        state = {"s": h.new_zeros(h.shape[0], 5, 5)}
        for _ in range(4):
            h, state = activation_checkpoint(self.once, h, state, nested) if outer else self.once(h, state, nested)
        return h.square().sum() + state["s"].sum()


FLAGS = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outer", "nested"), FLAGS)
def test_gradients_are_bitwise_equal(dtype: torch.dtype, outer: bool, nested: bool) -> None:
    plain = Stack().to(dtype)
    again = copy.deepcopy(plain)
    results = []
    for model, flags in ((plain, (False, False)), (again, (outer, nested))):
        x = (0.3 * torch.randn(2, 5, generator=torch.Generator().manual_seed(3))).to(dtype).requires_grad_()
        loss = model(x, *flags)
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(*results, strict=True))
    # 12 forward, each again for its backward; nested, once more on behalf of the outer one, except for the last of each.
    assert (plain.runs, again.runs) == (12, 32 if outer and nested else 24)


def kept(outer: bool, nested: bool) -> int:
    """Bytes that the graph of a forward pass keeps, apart from parameters."""
    model, seen = Stack(), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    x = torch.randn(2, 5, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, outer, nested)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_the_coarser_the_grain_the_less_is_kept_and_nesting_keeps_no_more() -> None:
    nothing, coarse, fine, both = kept(False, False), kept(True, False), kept(False, True), kept(True, True)
    assert coarse == both < fine < nothing


def test_without_gradients_it_is_a_call() -> None:
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not activation_checkpoint(torch.sin, x).requires_grad


class Kept(Tiny):
    """Every use of every block recomputed."""

    def features(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(PASSES):
            for layer in self.layers:
                x = activation_checkpoint(layer, x)
        return x


def both(precision: str, stages: list[int]) -> list[tuple[Any, Any]]:
    """The reports of training with and without, at every stage."""
    results = []
    for zero in stages:
        reports = []
        for model in (Tiny(), Kept()):
            engine = make_engine(model, Optim(), precision, zero, accumulation=2)
            reports.append(train(engine, range(2)))
        results.append((reports[0], reports[1]))
    return results


def test_looped_weights_under_zero() -> None:
    """ZeRO 2 and 3 refuse a weight whose gradient hook fires twice, as it does under the reentrant kind."""
    for precision in ("fp32", "bf16"):
        assert all(with_ == without for with_, without in both(precision, [1, 2]))


@pytest.mark.slow
def test_looped_weights_under_zero_on_two_processes() -> None:
    assert all(with_ == without for results in run(both, 2, "fp32", [1, 2, 3]) for with_, without in results)
