"""The engine against plain torch for every ZeRO stage, world size and accumulation; its order of calls and its refusals."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sleeptrain.engine import Optim
from sleeptrain.engine.settings import merge_overrides
from sleeptrain.errors import UserError
from tests.distributed import run
from tests.engine.tiny import Tiny, batch, full_weights, make_engine, train

ROWS, STEPS = 8, 3
CASES = [(name, zero, accumulation) for name in ("adamw", "muon") for zero in (1, 2) for accumulation in (1, 2)]
ZERO_3 = [("adamw", 3, 1), ("adamw", 3, 2)]


def optim(name: str) -> Optim:
    # Gradient norms are about 0.8, so that clipping at 0.5 is active.
    return Optim(name, lr=0.02, adam_lr=0.01, clip=0.5, ns_dtype="float32")  # type: ignore[arg-type]


def trained(precision: str, cases: list[tuple[str, int, int]]) -> dict[Any, Any]:
    """For every case the gradient norms of STEPS steps and, on rank 0, the full parameters after them."""
    results = {}
    for name, zero, accumulation in cases:
        engine = make_engine(Tiny(), optim(name), precision, zero, accumulation=accumulation)
        steps = train(engine, range(STEPS), ROWS)
        results[name, zero, accumulation] = [step.grad_norm for step in steps], full_weights(engine)
    return results


def muon_oracle(gradient: Tensor, momentum: Tensor) -> Tensor:
    """The update of Muon as its paper writes it, in float64."""
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    x = gradient * 0.05 + momentum * 0.95
    x = x / x.norm()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide - 4.7750 * square @ wide + 2.0315 * square @ square @ wide
    x = wide if x.shape[0] <= x.shape[1] else wide.T
    return x * max(1.0, x.shape[0] / x.shape[1]) ** 0.5


def oracle(name: str) -> tuple[list[float], dict[str, Tensor]]:
    """Gradient norms and parameters of the same steps with torch's clipping and AdamW, and `muon_oracle`, on one process."""
    model, config, norms = Tiny(), optim(name), []
    named = dict(model.named_parameters())
    hidden = [n for n in named if n.endswith((".q.weight", ".o.weight"))] if name == "muon" else []
    matrices = [n for n in named if n.endswith((".q.weight", ".o.weight")) and n not in hidden]
    plain = [n for n in named if n not in hidden and n not in matrices]
    adam = torch.optim.AdamW(
        [
            {"params": [named[n] for n in plain], "weight_decay": 0.0},
            {"params": [named[n] for n in matrices] or [nn.Parameter(torch.zeros(1))]},
        ],
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    momenta = {n: torch.zeros_like(named[n], dtype=torch.float64) for n in hidden}
    for step in range(STEPS):
        tokens, targets = batch(step, ROWS)
        model.zero_grad()
        (model(tokens, targets) / (targets != -100).sum()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), config.clip)))
        for group, rate in zip(adam.param_groups, (0.01, 0.02), strict=True):
            group["lr"] = rate / (1 + step)
        adam.step()
        with torch.no_grad():
            for n in hidden:
                rate = 0.02 / (1 + step)
                named[n].mul_(1 - rate * config.weight_decay)
                named[n].sub_(rate * muon_oracle(named[n].grad.double(), momenta[n]).float())  # type: ignore[union-attr]
    return norms, {n: p.detach() for n, p in named.items()}


@pytest.fixture(scope="module")
def results() -> dict[int, dict[Any, Any]]:
    return {1: trained("fp32", CASES), 2: run(trained, 2, "fp32", CASES)[0]}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_plain_torch(results: dict[int, dict[Any, Any]], world: int, case: tuple[str, int, int]) -> None:
    """Rows have different numbers of targets, hence ranks and micro-batches as well."""
    assert_equals_oracle(case, *results[world][case])


@pytest.mark.slow
def test_zero_3_equals_plain_torch() -> None:
    for results in (trained("fp32", ZERO_3), run(trained, 2, "fp32", ZERO_3)[0]):
        for case in ZERO_3:
            assert_equals_oracle(case, *results[case])


def assert_equals_oracle(case: tuple[str, int, int], norms: list[float], weights: dict[str, Tensor]) -> None:
    expected_norms, expected = oracle(case[0])
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=3e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_bf16_layouts_agree_within_rounding() -> None:
    expected_norms, expected = oracle("muon")
    for results in (trained("bf16", CASES), run(trained, 2, "bf16", CASES)[0]):
        for (name, _, _), (norms, weights) in results.items():
            if name == "muon":
                assert norms == pytest.approx(expected_norms, rel=0.02)
                for n, weight in expected.items():
                    # fp32 master weights differ by the bf16 rounding of the initial weights and of gradients.
                    torch.testing.assert_close(weights[n], weight, atol=0.02, rtol=0.02)


def build_and_train(stages: list[int]) -> None:
    for zero, precision in ((zero, precision) for zero in stages for precision in ("fp32", "bf16")):
        engine = make_engine(Tiny(), Optim(), precision, zero)
        train(engine, range(12), 2)


def test_wrong_orders_of_calls_raise_and_muon_with_zero_3_is_refused() -> None:
    engine = make_engine(Tiny(), Optim(), "fp32", 1, accumulation=2)
    tokens, targets = batch(0)
    engine.backward(engine.module(tokens, targets))
    with pytest.raises(RuntimeError, match="2 calls of backward"):
        engine.step()
    engine.backward(engine.module(tokens, targets))
    with pytest.raises(RuntimeError, match="call step first"):
        engine.backward(engine.module(tokens, targets))
    with pytest.raises(UserError, match=r"needs mesh\.zero 1 or 2"):
        make_engine(Tiny(), Optim("muon", adam_lr=0.1), "fp32", 3)


def test_overrides_are_merged_at_every_depth_and_reserved_keys_are_refused() -> None:
    base = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 5}, "bf16": {"enabled": False}}
    over = {"zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": True}, "flops_profiler": {"enabled": True}}
    assert merge_overrides(base, over) == {
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 7, "overlap_comm": True},
        "bf16": {"enabled": False},
        "flops_profiler": {"enabled": True},
    }
    with pytest.raises(UserError) as caught:
        merge_overrides(base, {"gradient_clipping": 1.0, "optimizer": {}, "zero_optimization": {"stage": 2}})
    assert len(caught.value.errors) == 3 and "set optim.clip instead" in str(caught.value)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    build_and_train([1, 2])
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.slow
def test_nothing_is_printed_by_fresh_processes(capfd: pytest.CaptureFixture[str]) -> None:
    run(build_and_train, 2, [1, 2, 3], fresh=True)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def alive_after(close: bool) -> list[bool]:
    """Whether a model is still there after nothing refers to it, for engines that were closed or not."""
    found = []
    for precision, zero in (("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)):
        engine = make_engine(Tiny(), Optim(), precision, zero)
        train(engine, range(1), ROWS)
        model = weakref.ref(engine.module)
        if close:
            engine.close()
        del engine
        gc.unfreeze()
        gc.collect()
        found.append(model() is not None)
    return found


@pytest.mark.slow
def test_a_closed_engine_lets_go_of_its_model() -> None:
    """Several seeds are trained in one process, one after the other."""
    assert run(alive_after, 1, True) == [[False] * 4]
    assert any(run(alive_after, 1, False)[0]), "the engine need not be closed any more"
