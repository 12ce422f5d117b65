"""Each fails when DeepSpeed no longer needs the work-around: then delete the work-around, and the test."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings

import pytest
import torch
import torch.distributed as dist

from sleeptrain.engine import Optim, build, init_distributed
from sleeptrain.engine.optimizers import kind
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
    build(Tiny(), Optim(), precision="bf16", zero=1, micro_rows=1, accumulation=1)
    assert capfd.readouterr().out


def test_zero_3_still_calls_collectives_by_their_old_names() -> None:
    engine = build(Tiny(), Optim(), precision="fp32", zero=3, micro_rows=4, accumulation=1)
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


class Fast(nn.Module):
    """A parameter of its own, and two results of which one leads on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4).T.contiguous().T)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.weight, state + torch.tanh(x).sum(0) @ self.weight.T.unflatten(1, (2, 2)).flatten(1)


class Passes(nn.Module):
    """Two passes; each reads the input again, so that nobody reads the features of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.last = Fast(), nn.Linear(4, 4, bias=False)

    def once(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, state = self.fast(x, state)
        return self.last(x), state

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(4)
        for _ in range(2):
            h, state = recompute(self.once, x, state)
        return h.square().sum() + state.square().sum()


def losses_of_passes() -> list[float]:
    init_distributed()
    model = Passes()
    with torch.no_grad():
        model.last.weight.copy_(torch.eye(4) / 2)
    engine = build(model, Optim(), precision="fp32", zero=3, micro_rows=4, accumulation=1)
    found = []
    for _ in range(2):
        loss = engine.module.once and engine.module(torch.arange(8.0).view(2, 4) / 8)
        engine.backward(loss)
        engine.step()
        found.append(float(loss))
    return found


def losses_without(patch: str) -> list[float]:
    builder = importlib.import_module("sleeptrain.engine.build")
    setattr(builder, patch, lambda engine: None)
    return losses_of_passes()


def test_zero_3_still_takes_parameters_away_from_a_module_in_backward() -> None:
    first, second = run(losses_of_passes, 2)
    assert first == second and first[1] < first[0]
    with pytest.raises(AssertionError, match="must match the size of tensor b"):
        run(losses_without, 2, "keep_in_backward")
