"""Frozen weights in the engine: against a plain loop of torch in float64, and in checkpoints of every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sleeptrain import checkpoint
from sleeptrain.engine.optimizers import kind
from tests.checkpoint.saving import fresh, load, save
from tests.distributed import run
from tests.engine.tiny import Tiny, batch, same, snapshot, train

TRAINED = "layers.1.", "norm."


def frozen_model(seed: int = 0) -> Tiny:
    """The tiny model, of which block 1 and the final norm are trained."""
    model = Tiny(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    return model


def plain_loop(steps: int) -> dict[str, torch.Tensor]:
    """The weights after some steps of torch's AdamW with clipping, in float64."""
    model = frozen_model().double()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if kind(name, p) == which], "peak": rate, "weight_decay": decay}
        for which, rate, decay in (("matrix", 0.02, 0.5), ("plain", 0.01, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] / (1 + step)
        tokens, targets = batch(step)
        optimizer.zero_grad()
        (model(tokens, targets) / (targets != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 0.2)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_training_is_that_of_a_plain_loop(zero: int) -> None:
    engine = fresh("adamw", "fp32", zero, model=frozen_model(), weight_decay=0.5, clip=0.2)
    results = train(engine, range(3))
    assert all(result.grad_norm > 0.2 for result in results)
    expected, initial = plain_loop(3), dict(frozen_model().named_parameters())
    masters = {piece.name: piece.values["master"].view(piece.shape) for piece in engine.state_slices()}
    assert masters.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(masters[name].double(), weight, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(masters[name], initial[name]) is not name.startswith(TRAINED), name
    moments = {piece.name for piece in engine.state_slices() if len(piece.values) > 1}
    assert moments == {name for name in expected if name.startswith(TRAINED)}


def saved_and_loaded(folder: str, cases: list[tuple[str, str, int]]) -> dict[tuple[str, str, int], list[bool]]:
    """Whether a run that resumes equals one that goes on, and whether every weight of the checkpoint is that of the model."""
    found = {}
    for case in cases:
        where = Path(folder) / "-".join(map(str, case))
        saving = fresh(*case, model=frozen_model())
        train(saving, range(2))
        path = save(saving, where, 2)
        train(saving, range(2, 3))
        resumed = fresh(*case, model=frozen_model(seed=5))
        load(resumed, where)
        train(resumed, range(2, 3))
        weights, initial = checkpoint.load_weights(path), dict(Tiny().named_parameters())
        dtype = torch.bfloat16 if case[1] == "bf16" else torch.float32
        kept = [torch.equal(weights[n], p.to(dtype).float()) for n, p in initial.items() if not n.startswith(TRAINED)]
        later = fresh(*case, model=Tiny(seed=5))
        checkpoint.load_initial_weights(later, path)
        new_moments = all(piece.values.keys() == {"master"} for piece in later.state_slices())
        found[case] = [
            same(snapshot(saving), snapshot(resumed)),
            all(kept),
            weights.keys() == initial.keys(),
            new_moments,
        ]
    return found


CASES = [("adamw", "bf16", 1), ("adamw", "fp32", 3)]
REST = [("muon", "bf16", 1), ("muon", "fp32", 2), ("adamw", "bf16", 3), ("adamw", "bf16", 2), ("adamw", "fp32", 1)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_checkpoints_hold_all_weights_and_the_moments_of_trained_ones(
    tmp_path: Path, case: tuple[str, str, int]
) -> None:
    assert saved_and_loaded(str(tmp_path), [case]) == {case: [True] * 4}


@pytest.mark.parametrize(
    "cases", [pytest.param(CASES, marks=pytest.mark.slow), pytest.param(REST, marks=pytest.mark.exhaustive)], ids=len
)
def test_checkpoints_of_two_processes(tmp_path: Path, cases: list[tuple[str, str, int]]) -> None:
    """Each process writes its share of a frozen weight, of which both keep the whole at ZeRO 1."""
    assert run(saved_and_loaded, 2, str(tmp_path), cases) == [dict.fromkeys(cases, [True] * 4)] * 2


@pytest.mark.parametrize("trained", ["norm.", "layers.1.mixer.q."])
@pytest.mark.parametrize(("precision", "zero"), [("bf16", 1), ("fp32", 2)])
def test_muon_trains_with_one_group_alone(trained: str, precision: str, zero: int) -> None:
    """Vectors, which AdamW updates, or matrices, which Muon does."""
    model = Tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = fresh("muon", precision, zero, model=model)
    results = train(engine, range(2))
    assert all(result.grad_norm > 0 and not result.skipped for result in results) and engine.optimizer_step == 2
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter, initial[name].to(parameter.dtype)) is not name.startswith(trained), name
