"""Checkpoints: resuming is bitwise equal to not stopping, on every rank; refusals of other layouts; random states."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleeptrain import checkpoint
from sleeptrain.engine import Engine, Optim
from sleeptrain.errors import UserError
from sleeptrain.parallel import Mesh
from tests.distributed import run
from tests.engine.tiny import Tiny, batch, make_engine, same, snapshot, train

CASES = [("muon", "bf16", 1), ("muon", "bf16", 2), ("muon", "fp32", 2), ("adamw", "fp32", 1)]
REST = [
    (name, precision, zero)
    for name, zeros in (("adamw", (1, 2, 3)), ("muon", (1, 2)))
    for precision in ("fp32", "bf16")
    for zero in zeros
    if (name, precision, zero) not in CASES
]
ALL_EQUAL = dict.fromkeys(("continued", "resumed", "state", "weights"), True)


def fresh(name: str, precision: str, zero: int, seed: int = 0, **changes: Any) -> Engine:
    optim = Optim(name, **{"lr": 0.02, "adam_lr": 0.01, "ns_dtype": "float32", **changes})  # type: ignore[arg-type]
    return make_engine(Tiny(seed), optim, precision, zero)


def save_and_resume(folder: str, cases: list[tuple[str, str, int]]) -> dict[Any, Any]:
    """For every case: whether the saving run and the resumed run equal one without a checkpoint after four steps, and
    whether the state and the weights of the checkpoint are those that were saved."""
    results = {}
    for case in cases:
        case_folder = Path(folder) / "-".join(map(str, case))
        reference = fresh(*case)
        train(reference, range(4))
        saving = fresh(*case)
        train(saving, range(2))
        state = {"step": 2, "rank": saving.process.rank}
        path = checkpoint.save(saving, case_folder, 2, state, config="train: {}\n")
        train(saving, range(2, 4))
        resumed = fresh(*case, seed=5)
        loaded_state = checkpoint.load(resumed, path)
        weights = resumed.weights()
        train(resumed, range(2, 4))
        results[case] = {
            "continued": same(snapshot(reference), snapshot(saving)),
            "resumed": same(snapshot(reference), snapshot(resumed)),
            "state": loaded_state == state,
            "weights": weights is None
            or all(torch.equal(w, weights[n]) for n, w in checkpoint.load_weights(path).items()),
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
    """DeepSpeed's files restore those of the run that saved, which would silently override the configuration."""
    old = fresh("muon", "fp32", 1)
    train(old, range(1))
    path = checkpoint.save(old, tmp_path, 1, {})
    new = fresh("muon", "fp32", 1, lr=0.5, weight_decay=0.7, clip=3.0, betas=(0.1, 0.2))
    checkpoint.load(new, path)
    groups = {group["name"]: group for group in new.optimizer.param_groups}
    assert groups["matrix"]["peak"] == 0.5 and groups["plain"]["peak"] == 0.01
    assert groups["other"]["weight_decay"] == 0.7 and tuple(groups["other"]["betas"]) == (0.1, 0.2)
    assert new._deepspeed.optimizer.clip_grad == 3.0


def test_weights_load_into_a_plain_model(tmp_path: Path) -> None:
    engine = fresh("adamw", "fp32", 1)
    train(engine, range(2))
    path = checkpoint.save(engine, tmp_path, 2, {})
    model = Tiny(9)
    model.load_state_dict(checkpoint.load_weights(path))
    assert torch.equal(model(*batch(3)), engine.module(*batch(3)))
    assert all(weight.dtype == torch.float32 for weight in checkpoint.load_weights(path).values())


def test_latest_checkpoint_pruning_and_saving_a_step_again(tmp_path: Path) -> None:
    engine = fresh("adamw", "fp32", 1)
    assert checkpoint.latest(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save(engine, tmp_path, step, {"step": step}, keep=2)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000003"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    # Step 2 is saved again after a rollback: a run resumes there, and not at the abandoned step 3.
    path = checkpoint.save(engine, tmp_path, 2, {"step": "rolled back"}, keep=2)
    assert checkpoint.latest(tmp_path) == path == tmp_path / "step-00000002"
    assert checkpoint.load(engine, path) == {"step": "rolled back"}
    # `latest` names a missing checkpoint, and there are incomplete folders.
    (tmp_path / "latest").write_text("step-00000007\n")
    (tmp_path / ".step-00000009.part").mkdir()
    (tmp_path / "step-00000008").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000003"


def test_a_failed_save_leaves_the_previous_checkpoint_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh("adamw", "fp32", 1)
    previous = checkpoint.save(engine, tmp_path, 1, {})

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sleeptrain.checkpoint.folder._commit", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(engine, tmp_path, 2, {})
    assert checkpoint.latest(tmp_path) == previous
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) != checkpoint.save(engine, tmp_path, 2, {}) == checkpoint.latest(tmp_path)


THIS_RUN = "this run has 1 process (data 1 x pipe 1 x tensor 1, ZeRO 1, fp32, adamw); a run continues with the layout of its checkpoint: "


def test_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint.save(fresh("adamw", "fp32", 1), tmp_path, 1, {})
    with pytest.raises(UserError) as caught:
        checkpoint.load(fresh("muon", "bf16", 2), path)
    assert caught.value.errors == [
        f"{path} was written by 1 process (data 1 x pipe 1 x tensor 1, ZeRO 1, fp32, adamw), and this run has 1 process (data 1 x pipe 1 x "
        "tensor 1, ZeRO 2, bf16, muon); a run continues with the layout of its checkpoint: start 1 process with mesh.zero=1 train.precision=fp32 "
        "optim.name=adamw, or begin another run with run_dir=..."
    ]
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load_weights(tmp_path)


@pytest.mark.parametrize(
    ("saved", "written_by", "start"),
    [
        ({"processes": 4, "data": 4}, "4 processes (data 4 x pipe 1 x tensor 1, ZeRO 1, fp32, adamw)", "start 4 processes"),
        ({"processes": 2, "pipe": 2}, "2 processes (data 1 x pipe 2 x tensor 1, ", "start 2 processes with mesh.pipe=2"),
        (
            {"processes": 4, "data": 2, "tensor": 2, "sequence": True},
            "4 processes (data 2 x pipe 1 x tensor 2 with sequence, ",
            "start 4 processes with mesh.tensor=2 mesh.sequence=true",
        ),
        ({"zero": 3}, "1 process (data 1 x pipe 1 x tensor 1, ZeRO 3, ", "start 1 process with mesh.zero=3"),
    ],
)  # fmt: skip
def test_the_refusal_names_both_layouts_and_how_to_start(
    tmp_path: Path, saved: dict[str, Any], written_by: str, start: str
) -> None:
    path = checkpoint.save(fresh("adamw", "fp32", 1), tmp_path, 1, {})
    layout = json.loads((path / "layout.json").read_text())
    assert layout == {
        "processes": 1, "data": 1, "pipe": 1, "tensor": 1, "sequence": False, "zero": 1, "precision": "fp32", "optimizer": "adamw",
    }  # fmt: skip
    (path / "layout.json").write_text(json.dumps(layout | saved))
    with pytest.raises(UserError) as caught:
        checkpoint.load(fresh("adamw", "fp32", 1), path)
    (message,) = caught.value.errors
    assert (
        message.startswith(f"{path} was written by {written_by}")
        and f"{THIS_RUN}{start}, or begin another run" in message
    )


def load_with_another_mesh(folder: str) -> list[str] | None:
    """The errors of this rank when a checkpoint of two stages is loaded with data parallelism alone; None without an error."""
    engine = fresh("adamw", "fp32", 1)
    path = checkpoint.save(engine, Path(folder), 1, {}, mesh=Mesh(pipe=2))
    try:
        checkpoint.load(engine, path)
    except UserError as error:
        return error.errors
    return None


def test_all_ranks_refuse_and_rank_0_has_the_message(tmp_path: Path) -> None:
    first, second = run(load_with_another_mesh, 2, str(tmp_path))
    assert len(first) == 1 and "pipe 2" in first[0] and second == []


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
