"""Activation checkpointing: bitwise equal gradients, saved bytes, and ZeRO with weights that are used several times."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine import Optim
from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS, activation_checkpoint
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run as run_program
from sleeptrain.program import compile
from tests.distributed import run
from tests.engine.tiny import PASSES, Tiny, make_engine, train
from tests.model import toy
from tests.model.test_sleep import CASES


class Stack(nn.Module):
    """Several layers, each used several times, with features and state as in the real stack."""

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
    checkpointed = copy.deepcopy(plain)
    results = []
    for model, flags in ((plain, (False, False)), (checkpointed, (outer, nested))):
        x = (0.3 * torch.randn(2, 5, generator=torch.Generator().manual_seed(3))).to(dtype).requires_grad_()
        loss = model(x, *flags)
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(*results, strict=True))
    # 12 in forward and 12 recomputed. When nested, the outer call recomputes all but its last layer once more.
    assert (plain.runs, checkpointed.runs) == (12, 32 if outer and nested else 24)


def saved_bytes(outer: bool, nested: bool) -> int:
    """Bytes that the graph of a forward pass saves, without parameters."""
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


def test_coarser_checkpoints_save_less_and_nested_ones_save_no_more() -> None:
    none, coarse = saved_bytes(False, False), saved_bytes(True, False)
    fine, nested = saved_bytes(False, True), saved_bytes(True, True)
    assert coarse == nested < fine < none


def test_without_gradients_the_function_is_called_directly() -> None:
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert not activation_checkpoint(torch.sin, x).requires_grad


class Checkpointed(Tiny):
    """Recomputes every use of every block."""

    def features(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(PASSES):
            for layer in self.layers:
                x = activation_checkpoint(layer, x)
        return x


def train_both(precision: str, zero_stages: list[int]) -> list[tuple[Any, Any]]:
    """Reports of training without and with activation checkpointing at every ZeRO stage."""
    results = []
    for zero in zero_stages:
        reports = []
        for model in (Tiny(), Checkpointed()):
            engine = make_engine(model, Optim(), precision, zero, accumulation=2)
            reports.append(train(engine, range(2)))
        results.append((reports[0], reports[1]))
    return results


def test_weights_used_several_times_train_under_zero() -> None:
    """ZeRO-2 and ZeRO-3 refuse a weight whose gradient hook fires twice, as it does under reentrant checkpoints."""
    for precision in ("fp32", "bf16"):
        assert all(plain == checkpointed for plain, checkpointed in train_both(precision, [1, 2]))


@pytest.mark.slow
def test_weights_used_several_times_train_under_zero_on_two_processes() -> None:
    for results in run(train_both, 2, "fp32", [1, 2, 3]):
        assert all(plain == checkpointed for plain, checkpointed in results)


@pytest.mark.parametrize("policy", AUTOGRAD_WRAPPERS)
def test_the_policies_of_plain_autograd_give_the_same_bits(policy: str) -> None:
    sleep, layout, passes = CASES["sliding, range, every"]
    tokens, targets = toy.batch(layout)
    results = []
    for name in ("none", policy):
        model = toy.model()
        batch = MicroBatch(tokens, targets, model.zero_state(sleep, 2))
        program = compile(sleep, layout, len(model.layers), passes)
        output = run_program(model, batch, program, sleep, recompute=AUTOGRAD_WRAPPERS[name])
        output.nll.square().sum().backward()
        results.append([output.nll.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
