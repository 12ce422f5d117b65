"""Each fails when DeepSpeed no longer needs the work-around: then delete the work-around, and the test."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleeptrain.engine import Optim, build_engine
from sleeptrain.engine.optimizers import kind
from sleeptrain.execute.activation_checkpoint import activation_checkpoint
from sleeptrain.parallel.process import init_distributed
from tests.distributed import run
from tests.engine.tiny import Tiny, batch, train

pytestmark = pytest.mark.slow


def join_without_ninja() -> str:
    import deepspeed.comm

    os.environ["PATH"] = "/nonexistent"
    dist.init_process_group("gloo")
    try:
        deepspeed.comm.init_distributed(auto_mpi_discovery=False)
    except RuntimeError as error:
        return str(error)
    return ""


def test_shared_memory_operator_is_still_compiled() -> None:
    assert "deepspeed_shm_comm" in run(join_without_ninja, 1)[0]


def test_bf16_optimizer_still_prints(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # By name: the package's `build` is the function.
    monkeypatch.setattr(importlib.import_module("sleeptrain.engine.build"), "quiet", contextlib.nullcontext)
    build_engine(Tiny(), Optim(), precision="bf16", zero=1, micro_rows=1, accumulation=1)
    assert capfd.readouterr().out


def test_zero_3_still_calls_collectives_by_their_old_names() -> None:
    engine = build_engine(Tiny(), Optim(), precision="fp32", zero=3, micro_rows=4, accumulation=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(engine, range(1))
    assert any("is deprecated" in str(warning.message) for warning in caught)


def test_deepspeeds_muon_still_takes_the_norm_of_updates() -> None:
    """Why `engine.muon` exists: the norm that DeepSpeed reports, and clips by, is not that of the gradient."""
    init_distributed()
    import deepspeed

    tokens, targets = batch(0)
    plain = Tiny()
    (plain(tokens, targets) / 10).backward()
    true = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm().item()
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
    assert float(engine.get_global_grad_norm()) > 2 * true


class Memory(nn.Module):
    """Reads x and writes a state, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.8, 8).view(2, 4))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spread = torch.cat([self.weight.unflatten(1, (2, 2)), self.weight.unflatten(1, (2, 2))], 1).flatten(1)
        return x @ spread, state + torch.tanh(x @ spread).sum(0)


class Passes(nn.Module):
    """Two recomputed passes. Both read the input, so that backward enters the first one in its middle, by the state."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.last = Memory(), nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.last.weight)

    def once(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, state = self.memory(x, state)
        return self.last(h), state

    def loss(self) -> Tensor:
        x, state = torch.linspace(0, 1, 6).view(3, 2), torch.zeros(8)
        for _ in range(2):
            h, state = activation_checkpoint(self.once, x, state)
        return h.square().sum() + state.square().sum()


def trained_in_parts(without: str | None) -> tuple[list[float], bool, int]:
    """Losses, whether ZeRO 3 knows in which order parameters are used, and how many modules it takes to be in forward; of a
    model whose own forward is never called."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    init_distributed()
    if without is not None:
        # By name: the package's `build` is the function.
        setattr(importlib.import_module("sleeptrain.engine.build"), without, lambda _: lambda: None)
    engine = build_engine(Passes(), Optim(lr=0.01), precision="fp32", zero=3, micro_rows=1, accumulation=1)
    losses = []
    for _ in range(3):
        loss = engine.module.loss()  # type: ignore[operator]
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    coordinator = engine._deepspeed.optimizer.parameter_offload.get_param_coordinator()
    return losses, coordinator.is_complete_trace(), len(FWD_MODULE_STACK)


def test_zero_3_still_counts_uses_by_a_forward_that_is_not_called() -> None:
    losses, known, inside = run(trained_in_parts, 2, None)[0]
    assert losses[2] < losses[1] < losses[0] and known and inside == 1
    again, known, inside = run(trained_in_parts, 2, "uses_counted_by_backward")[0]
    assert losses == again and not known and inside > 3


def test_zero_3_still_takes_parameters_from_a_module_in_backward() -> None:
    with pytest.raises(AssertionError, match="must match the size of tensor b"):
        run(trained_in_parts, 2, "keep_in_backward")
