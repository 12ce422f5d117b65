"""Every workaround for DeepSpeed's ZeRO, bf16 optimizer and Muon works and is still needed.

A test that fails because the workaround is no longer needed is deleted together with the workaround.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine import EngineSpec, Optim, build_engine
from sleeptrain.engine.optimizers import kind
from sleeptrain.execute.activation_checkpoint import activation_checkpoint
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run
from tests.engine.tiny import Tiny, batch


@pytest.mark.slow
def test_deepspeeds_muon_still_takes_the_norm_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for `engine.muon`: the norm that DeepSpeed reports and clips by is not that of the gradient."""
    monkeypatch.setattr("torch._dynamo.config.disable", True)  # compiling what it decorates takes longer than the test
    init_distributed()
    import deepspeed

    tokens, targets = batch(0)
    plain = Tiny()
    (plain(tokens, targets) / 10).backward()
    grad_norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm().item()
    model = Tiny()
    for name, parameter in model.named_parameters():
        parameter.use_muon = kind(name, parameter) == "matrix"  # type: ignore[attr-defined]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 10_000},
            "optimizer": {"type": "Muon", "params": {"lr": 0.01, "torch_adam": True}},
        },
    )
    engine.backward(engine(tokens, targets) / 10)
    engine.step()
    assert float(engine.get_global_grad_norm()) > 2 * grad_norm


def inductor_is_imported(build: Callable[[], object]) -> bool:
    """Whether building an engine imports TorchInductor's lowering of operators."""
    init_distributed()
    build()
    return "torch._inductor.lowering" in sys.modules


def build_ours() -> None:
    build_engine(Tiny(), Optim(), EngineSpec("fp32", zero=1, micro_rows=4, accumulation=1))


def build_with_deepspeed_alone() -> None:
    import deepspeed

    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    deepspeed.initialize(model=model, optimizer=optimizer, config=config)


@pytest.mark.slow
def test_our_engine_does_not_import_inductor() -> None:
    assert run(inductor_is_imported, 1, build_ours, fresh=True) == [False]


@pytest.mark.exhaustive
def test_deepspeed_still_imports_inductor_for_every_optimizer() -> None:
    assert run(inductor_is_imported, 1, build_with_deepspeed_alone, fresh=True) == [True]


def norm_of_gradients_that_others_count(patched: bool) -> float:
    """The norm in bf16 at ZeRO 1 on a stage all of whose weights the first stage holds, too."""
    init_distributed()
    model = Tiny()
    for parameter in model.parameters():
        parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]
    engine = build_engine(model, Optim(), EngineSpec("bf16", zero=1, micro_rows=4, accumulation=1))
    if not patched:
        del engine._deepspeed.optimizer.get_grads_for_norm
    engine.backward(model(*batch(0)))
    return engine.step().grad_norm


@pytest.mark.slow
def test_the_bf16_optimizer_still_fails_where_no_gradient_is_counted() -> None:
    assert run(norm_of_gradients_that_others_count, 1, True) == [0.0]
    with pytest.raises(AssertionError, match="stack expects a non-empty TensorList"):
        run(norm_of_gradients_that_others_count, 1, False)


class Memory(nn.Module):
    """Reads x and writes a state, with a parameter that it uses directly and not through a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.8, 8).view(2, 4))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spread = torch.cat([self.weight.unflatten(1, (2, 2)), self.weight.unflatten(1, (2, 2))], 1).flatten(1)
        return x @ spread, state + torch.tanh(x @ spread).sum(0)


class Passes(nn.Module):
    """Two recomputed passes. Both read the input, so that backward starts in the middle of the first one, from the state."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.last = Memory(), nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.last.weight)

    def run_pass(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, state = self.memory(x, state)
        return self.last(h), state

    def loss(self) -> Tensor:
        x, state = torch.linspace(0, 1, 6).view(3, 2), torch.zeros(8)
        for _ in range(2):
            h, state = activation_checkpoint(self.run_pass, x, state)
        return h.square().sum() + state.square().sum()


def train_without_root_forward(disabled_patch: str | None) -> tuple[list[float], bool, int]:
    """Trains a model whose own forward is never called, with both workarounds but `disabled_patch`.

    Returns the losses, whether ZeRO 3 has a complete trace of parameter uses, and the length of FWD_MODULE_STACK.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    init_distributed()
    if disabled_patch is not None:
        setattr(importlib.import_module("sleeptrain.engine.engine"), disabled_patch, lambda _: lambda: None)
    engine = build_engine(Passes(), Optim(lr=0.01), EngineSpec("fp32", zero=3, micro_rows=1, accumulation=1))
    losses = []
    for _ in range(3):
        loss = engine.module.loss()  # type: ignore[operator]
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    coordinator = engine._deepspeed.optimizer.parameter_offload.get_param_coordinator()
    return losses, coordinator.is_complete_trace(), len(FWD_MODULE_STACK)


@pytest.mark.slow
def test_zero_3_still_traces_parameter_uses_by_forwards_of_the_root_module() -> None:
    losses, complete_trace, depth = run(train_without_root_forward, 2, None)[0]
    assert losses[2] < losses[1] < losses[0] and complete_trace and depth == 1
    unpatched_losses, complete_trace, depth = run(train_without_root_forward, 2, "trace_params_per_backward")[0]
    assert losses == unpatched_losses and not complete_trace and depth > 3


@pytest.mark.slow
def test_zero_3_still_releases_parameters_of_a_module_in_backward() -> None:
    with pytest.raises(AssertionError, match="must match the size of tensor b"):
        run(train_without_root_forward, 2, "keep_params_of_reentered_modules")
