"""One bad loss or gradient on one rank: nothing changes on any, and the next step is as if it had never been."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sleeptrain.engine import Engine, Optim
from tests.distributed import run
from tests.engine.tiny import Tiny, loss_of, made, same, snapshot, train

CASES = [(name, precision, zero) for name in ("adamw", "muon") for precision in ("fp32", "bf16") for zero in (1, 2)]
ZERO_3 = [("adamw", "fp32", 3), ("adamw", "bf16", 3)]
SPOILS = ["loss at the last micro-step", "loss at the first", "gradient at the last", "gradient at the first"]


def fresh(name: str, precision: str, zero: int) -> Engine:
    rule = Optim(name, lr=0.02, adam_lr=0.01, ns_dtype="float32")  # type: ignore[arg-type]
    return made(Tiny(), rule, precision, zero, accumulation=2)


def spoiled(engine: Engine, step: int, spoil: str) -> Any:
    """One step, spoiled on the last rank only."""
    what, when = spoil.split()[0], 0 if "first" in spoil else 1
    for micro in range(2):
        bad = engine.process.rank == engine.process.world - 1 and micro == when
        loss = loss_of(engine, step, micro)
        handle = None
        if bad and what == "loss":
            loss = loss + float("inf")
        elif bad:
            # One element of one gradient.
            def poison(gradient: torch.Tensor) -> torch.Tensor:
                gradient = gradient.clone()
                gradient.view(-1)[0] = float("nan")
                return gradient

            handle = engine.module.layers[0].norm1.weight.register_hook(poison)  # type: ignore[union-attr, index]
        engine.backward(loss)
        if handle is not None:
            handle.remove()
    return engine.step(1.0)


def survives(cases: list[tuple[str, str, int]]) -> dict[Any, Any]:
    """For every case and spoil: the report, whether nothing changed, and whether training goes on as if nothing had been."""
    results = {}
    for case in cases:
        reference = fresh(*case)
        train(reference, range(2))
        engine = fresh(*case)
        train(engine, range(1))
        for spoil in SPOILS:
            before = snapshot(engine)
            report = spoiled(engine, 7, spoil)
            results[case, spoil] = report, same(before, snapshot(engine))
        (report,) = train(engine, range(1, 2))
        results[case, "after"] = report, same(snapshot(reference), snapshot(engine))
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    return run(survives, 2, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_rank_steps(ranks: list[dict[Any, Any]], case: tuple[str, str, int]) -> None:
    no_rank_stepped(ranks, case)


@pytest.mark.slow
def test_no_rank_steps_under_zero_3() -> None:
    ranks = run(survives, 2, ZERO_3)
    for case in ZERO_3:
        no_rank_stepped(ranks, case)


def no_rank_stepped(ranks: list[dict[Any, Any]], case: tuple[str, str, int]) -> None:
    for rank, results in enumerate(ranks):
        for spoil in SPOILS:
            report, unchanged = results[case, spoil]
            assert report.skipped and report.grad_norm == float("inf"), (rank, spoil)
            assert unchanged, (rank, spoil)
        report, as_if_nothing_had_been = results[case, "after"]
        assert not report.skipped and as_if_nothing_had_been, rank


def test_snapshots_notice_a_step() -> None:
    engine = fresh("muon", "bf16", 2)
    train(engine, range(1))
    before = snapshot(engine)
    assert same(before, snapshot(engine))
    train(engine, range(1, 2))
    changed = [not same([a], [b]) for a, b in zip(before, snapshot(engine), strict=True)]
    assert sum(changed) > len(changed) // 2
