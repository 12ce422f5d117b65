"""Checkpoints: resuming is bitwise equal to not stopping, on every rank, and rates stay those of the run that resumes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleeptrain import checkpoint
from sleeptrain.errors import UserError
from tests.checkpoint.saving import fresh, load, save
from tests.distributed import run
from tests.engine.tiny import Tiny, batch, full_weights, same, snapshot, train

CASES = [("muon", "bf16", 1), ("muon", "bf16", 2), ("muon", "fp32", 2), ("adamw", "fp32", 1), ("adamw", "fp32", 3)]
REST = [
    (name, precision, zero)
    for name, zeros in (("adamw", (1, 2, 3)), ("muon", (1, 2)))
    for precision in ("fp32", "bf16")
    for zero in zeros
    if (name, precision, zero) not in CASES
]
ALL_EQUAL = dict.fromkeys(("continued", "resumed", "rolled back", "state", "weights"), True)


def save_and_resume(folder: str, cases: list[tuple[str, str, int]]) -> dict[Any, Any]:
    """For every case: whether the saving run, a run that resumes, and one that goes back to the checkpoint equal one without a
    checkpoint after four steps, and whether the state and the weights of the checkpoint are those that were saved."""
    results = {}
    for case in cases:
        case_folder = Path(folder) / "-".join(map(str, case))
        reference = fresh(*case)
        train(reference, range(4))
        saving = fresh(*case)
        train(saving, range(2))
        path = save(saving, case_folder, 2)
        train(saving, range(2, 4))
        continued = snapshot(saving)
        resumed = fresh(*case, seed=5)
        loaded = load(resumed, case_folder)
        saved_weights = full_weights(resumed)
        train(resumed, range(2, 4))
        load(saving, case_folder)
        train(saving, range(2, 4))
        results[case] = {
            "continued": same(snapshot(reference), continued),
            "resumed": same(snapshot(reference), snapshot(resumed)),
            "rolled back": same(snapshot(reference), snapshot(saving)),
            "state": (loaded.step, loaded.state, loaded.own_state)
            == (2, {"at": 2}, {"rank": saving.process.rank, "step": 2}),
            "weights": all(torch.equal(w, saved_weights[n]) for n, w in checkpoint.load_weights(path).items()),
        }
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run(save_and_resume, 2, str(tmp_path_factory.mktemp("two")), CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_is_bitwise_equal_on_two_processes(ranks: list[dict[Any, Any]], case: tuple[str, str, int]) -> None:
    assert [results[case] for results in ranks] == [ALL_EQUAL] * 2


@pytest.mark.slow
def test_resuming_is_bitwise_equal_for_the_other_layouts_on_two_processes(tmp_path: Path) -> None:
    assert run(save_and_resume, 2, str(tmp_path), REST) == [dict.fromkeys(REST, ALL_EQUAL)] * 2


@pytest.mark.parametrize("case", [("muon", "bf16", 1), ("muon", "fp32", 2), ("adamw", "bf16", 2)], ids=str)
def test_resuming_is_bitwise_equal_on_one_process(tmp_path: Path, case: tuple[str, str, int]) -> None:
    assert save_and_resume(str(tmp_path), [case]) == {case: ALL_EQUAL}


def test_rates_clip_and_decay_are_those_of_the_run_that_resumes(tmp_path: Path) -> None:
    old = fresh("muon", "fp32", 1)
    train(old, range(1))
    save(old, tmp_path, 1)
    new = fresh("muon", "fp32", 1, lr=0.5, weight_decay=0.7, clip=3.0, betas=(0.1, 0.2))
    load(new, tmp_path)
    groups = {group["name"]: group for group in new.optimizer.param_groups}
    assert groups["matrix"]["peak"] == 0.5 and groups["plain"]["peak"] == 0.01
    assert groups["matrix"]["weight_decay"] == 0.7 and tuple(groups["plain"]["betas"]) == (0.1, 0.2)
    assert new._deepspeed.optimizer.clip_grad == 3.0


def test_weights_load_into_a_plain_model(tmp_path: Path) -> None:
    engine = fresh("adamw", "fp32", 1)
    train(engine, range(2))
    loaded = checkpoint.load_weights(save(engine, tmp_path, 2))
    model = Tiny(9)
    model.load_state_dict(loaded)
    assert torch.equal(model(*batch(3)), engine.module(*batch(3)))
    assert all(weight.dtype == torch.float32 for weight in loaded.values())


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    """A run that goes back to it continues as if it had made no step."""
    reference, engine = fresh("muon", "fp32", 1), fresh("muon", "fp32", 1)
    save(engine, tmp_path, 0)
    train(engine, range(2))
    assert load(engine, tmp_path).step == 0 and engine.optimizer_step == 0
    train(engine, range(2))
    train(reference, range(2))
    assert same(snapshot(reference), snapshot(engine))


def test_another_optimizer_and_other_parameters_are_refused(tmp_path: Path) -> None:
    save(fresh("adamw", "fp32", 1), tmp_path, 1)
    with pytest.raises(UserError, match=r"was written with optim\.name=adamw, and this run has muon"):
        load(fresh("muon", "fp32", 1), tmp_path)
    narrow = fresh("adamw", "fp32", 1, model=Tiny(vocabulary=7))
    with pytest.raises(
        UserError, match=r"parameter embed\.weight has the shape \[11, 6\], and this model has \[7, 6\]"
    ):
        load(narrow, tmp_path)
    with pytest.raises(UserError, match=r"checkpoint\.json cannot be read"):
        checkpoint.load_weights(tmp_path)


def test_weights_alone_are_a_start_and_are_not_resumed(tmp_path: Path) -> None:
    engine = fresh("adamw", "fp32", 1)
    weights = {name: torch.full_like(value, 0.5) for name, value in full_weights(engine).items()}
    path = checkpoint.write_weights(tmp_path, 0, {n: tuple(w.shape) for n, w in weights.items()}, weights.__getitem__)
    with pytest.raises(UserError, match=r"holds weights without moments; start a new run from it: init_from="):
        load(engine, tmp_path)
    checkpoint.load_initial_weights(engine, path)
    assert same([*full_weights(engine).values()], [*weights.values()])


def test_random_states_survive_json() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.randn()),
            float(torch.rand(())),
        ]

    random.gauss(0, 1)
    np.random.randn()
    state = json.dumps(checkpoint.random_state())
    expected = draw()
    draw()
    checkpoint.set_random_state(json.loads(state))
    assert draw() == expected
