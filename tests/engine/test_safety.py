"""A non-finite loss or gradient on one rank: every rank skips the step unchanged, and training continues as without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleeptrain.engine import Engine, Optim, StepResult
from tests.distributed import run
from tests.engine.tiny import Tiny, loss_of, make_engine, same, snapshot, train

CASES = [(name, precision, zero) for name in ("adamw", "muon") for precision in ("fp32", "bf16") for zero in (1, 2)]
ZERO_3 = [("adamw", "fp32", 3), ("adamw", "bf16", 3)]
FAULTS = ["loss in the last micro-batch", "loss in the first", "gradient in the last", "gradient in the first"]


def fresh(name: str, precision: str, zero: int) -> Engine:
    optim = Optim(name, lr=0.02, adam_lr=0.01, ns_dtype="float32")  # type: ignore[arg-type]
    return make_engine(Tiny(), optim, precision, zero, accumulation=2)


def faulty_step(engine: Engine, step: int, fault: str) -> StepResult:
    """One step with a fault on the last rank only."""
    source, faulty_micro = fault.split()[0], 0 if "first" in fault else 1
    for micro in range(2):
        faulty = engine.process.rank == engine.process.world - 1 and micro == faulty_micro
        loss = loss_of(engine, step, micro)
        handle = None
        if faulty and source == "loss":
            loss = loss + float("inf")
        elif faulty:
            # A single element of a single gradient.
            def poison(gradient: torch.Tensor) -> torch.Tensor:
                gradient = gradient.clone()
                gradient.view(-1)[0] = float("nan")
                return gradient

            handle = engine.module.layers[0].norm1.weight.register_hook(poison)  # type: ignore[union-attr, index]
        engine.backward(loss)
        if handle is not None:
            handle.remove()
    return engine.step(1.0)


def train_with_faults(cases: list[tuple[str, str, int]]) -> dict[Any, Any]:
    """For every case and fault: the step's result and whether the engine is unchanged; and under "after" the result of the
    next step and whether the engine equals one that had no faults."""
    results = {}
    for case in cases:
        reference = fresh(*case)
        train(reference, range(2))
        engine = fresh(*case)
        train(engine, range(1))
        for fault in FAULTS:
            before = snapshot(engine)
            result = faulty_step(engine, 7, fault)
            results[case, fault] = result, same(before, snapshot(engine))
        (result,) = train(engine, range(1, 2))
        results[case, "after"] = result, same(snapshot(reference), snapshot(engine))
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    return run(train_with_faults, 2, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rank_skips_the_step(ranks: list[dict[Any, Any]], case: tuple[str, str, int]) -> None:
    assert_all_ranks_skipped(ranks, case)


@pytest.mark.slow
def test_every_rank_skips_the_step_under_zero_3() -> None:
    ranks = run(train_with_faults, 2, ZERO_3)
    for case in ZERO_3:
        assert_all_ranks_skipped(ranks, case)


def assert_all_ranks_skipped(ranks: list[dict[Any, Any]], case: tuple[str, str, int]) -> None:
    for rank, results in enumerate(ranks):
        for fault in FAULTS:
            result, unchanged = results[case, fault]
            assert result.skipped and result.grad_norm == float("inf"), (rank, fault)
            assert unchanged, (rank, fault)
        result, equals_reference = results[case, "after"]
        assert not result.skipped and equals_reference, rank


def test_a_step_changes_the_snapshot() -> None:
    engine = fresh("muon", "bf16", 2)
    train(engine, range(1))
    before = snapshot(engine)
    assert same(before, snapshot(engine))
    train(engine, range(1, 2))
    changed = [not same([a], [b]) for a, b in zip(before, snapshot(engine), strict=True)]
    assert sum(changed) > len(changed) // 2


def train_with_limits(cases: list[tuple[str, str, int]]) -> dict[Any, Any]:
    """For every case: a step above its limit and whether the engine is unchanged, the same step under a limit, and whether the
    engine then equals one without limits."""
    results = {}
    for case in cases:
        reference, engine = fresh(*case), fresh(*case)
        expected = train(reference, range(1))[0]
        before = snapshot(engine)
        for micro in range(2):
            engine.backward(loss_of(engine, 0, micro))
        # Ranks may know the norm, and so the limit, with other last bits: what one of them finds too large, all skip.
        share = 0.99 if engine.process.rank else 1.01
        above = engine.step(1.0, max_norm=expected.grad_norm * share)
        unchanged = same(before, snapshot(engine))
        for micro in range(2):
            engine.backward(loss_of(engine, 0, micro))
        below = engine.step(1.0, max_norm=expected.grad_norm * 1.01)
        train(engine, range(1, 2))
        train(reference, range(1, 2))
        results[case] = expected, above, unchanged, below, same(snapshot(reference), snapshot(engine))
    return results


@pytest.mark.parametrize("cases", [CASES, pytest.param(ZERO_3, marks=pytest.mark.slow)], ids=["ZeRO 1 and 2", "ZeRO 3"])
def test_a_norm_above_its_limit_skips_the_step_on_all_ranks(cases: list[tuple[str, str, int]]) -> None:
    for results in run(train_with_limits, 2, cases):
        for case, (expected, above, unchanged, below, equal) in results.items():
            assert above.skipped and unchanged, case
            assert above.grad_norm == pytest.approx(expected.grad_norm), case
            assert not below.skipped and equal and below.grad_norm == expected.grad_norm, case
