"""Evaluation while a model trains: the same numbers in every layout and by the command `eval`, and it changes no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sleeptrain.errors import UserError
from sleeptrain.evaluate.runs import evaluate
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

STEPS = ["train.steps=4", "train.batch=4", "train.micro=1", "optim.lr=0.003", "checkpoint.every=1", "checkpoint.keep=1"]
EVAL = ["eval.every=2", "eval.samples=21"]
"""21 samples: the last batches of every layout have fillers."""
TASKS = {
    "rule110": ["sleep.window=9", "sleep.passes=2"],
    "text": ["sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "model.tie=false", "model.layers=AGAG"],
}
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "data": (2, ["mesh.zero=1"]),
    "tensor": (2, ["mesh.tensor=2", "model.attention.kv_heads=2", "model.deltanet.key_heads=2"]),
    "sequence": (
        2,
        ["mesh.tensor=2", "mesh.sequence=true", "model.attention.kv_heads=2", "model.deltanet.key_heads=2"],
    ),
    "pipe": (2, ["mesh.pipe=2", "train.recompute=window"]),
    "zero 3": (2, ["mesh.zero=3", "train.recompute=pass"]),
}
HEADS = ["model.attention.kv_heads=2", "model.deltanet.key_heads=2"]
"""As in the layouts that divide heads."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("held_out")
    text_data(made)
    rule110_data(made)
    recipe_file(made)
    return str(made)


def training(folder: str, name: str, task: str, overrides: list[str]) -> list[dict[str, Any]]:
    rows, _ = trained(Path(folder), name, Path(folder) / task, [*STEPS, *TASKS[task], *overrides])
    return rows


def trainings(folder: str, runs: list[tuple[str, str, list[str]]]) -> list[list[dict[str, Any]]]:
    return [training(folder, name, task, overrides) for name, task, overrides in runs]


def evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k.startswith("eval_") and k != "eval_seconds"} for row in rows]


def close(found: Any, expected: Any) -> None:
    """Equal up to the rounding of a float, at any depth of lists and tables."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def alone(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Runs of one process by task."""
    return by_task(folder, "alone", [])


@pytest.fixture(scope="module")
def alone_with_heads(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The same with the heads of layouts that divide them."""
    return by_task(folder, "heads", HEADS)


def by_task(folder: str, name: str, overrides: list[str]) -> dict[str, list[dict[str, Any]]]:
    runs = [(f"{task}-{name}", task, [*EVAL, *overrides]) for task in TASKS]
    return dict(zip(TASKS, run(trainings, 1, folder, runs, timeout=300)[0], strict=True))


def test_evaluation_changes_no_training_and_equals_the_command(folder: str, alone: Any) -> None:
    """Losses of training by bits; evaluation by the eager interpreter, from the checkpoint."""
    for task in TASKS:
        rows = alone[task]
        plain = run(training, 1, folder, f"{task}-plain", task, [])[0]
        assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
        assert ["eval_loss" in row for row in rows] == [False, True, False, True] and "eval_loss" not in plain[-1]
        (result,), _ = evaluate([f"{folder}/{task}-alone"], None, None, 8, 21, quiet=True)
        measured, last = result.measured[0], rows[-1]
        assert last["eval_loss"] == pytest.approx(measured.loss, rel=1e-5) and last["eval_targets"] == measured.targets
        by_label = {str(v): tally.share("right", "tokens") for v, tally in measured.by_value.items()}
        assert last["eval_accuracy_by_label"] == pytest.approx(by_label if task == "rule110" else {})
        windows = last["eval_loss_by_window"]
        assert (windows[0] is None) == (task == "rule110") and windows[-1] > 0


SAVING = [
    ["train.recompute=none"],
    ["train.recompute=block", "train.offload=true"],
    ["train.recompute=pass", "train.offload=true"],
]


def test_nothing_is_saved_for_a_backward_that_does_not_come(folder: str, alone: Any) -> None:
    """Whatever training saves and offloads, evaluation is that of the run with `train.recompute=none`."""
    runs = [(f"text-saving-{number}", "text", [*EVAL, *saving]) for number, saving in enumerate(SAVING)]
    for rows in run(trainings, 1, folder, runs, timeout=300)[0]:
        close(evaluations(rows), evaluations(alone["text"]))


@pytest.mark.slow
def test_a_run_in_bf16_is_evaluated_in_bf16(folder: str) -> None:
    """By training and by the command, to the rounding of bfloat16 sums in another order; in float32 it differs by more."""
    rows = run(training, 1, folder, "text-bf16", "text", [*EVAL, "train.precision=bf16"])[0]
    losses = {}
    for fp32 in (False, True):
        (result,), _ = evaluate([f"{folder}/text-bf16"], None, None, 8, 21, quiet=True, fp32=fp32)
        losses[fp32] = result.measured[0].loss
    assert abs(losses[False] - rows[-1]["eval_loss"]) < abs(losses[True] - rows[-1]["eval_loss"]) < 0.05


CASES = [
    *(
        pytest.param(
            layout, ["text"] if layout in ("sequence", "zero 3") else list(TASKS), marks=pytest.mark.slow, id=layout
        )
        for layout in LAYOUTS
    ),
    pytest.param("zero 3", ["rule110"], marks=pytest.mark.exhaustive, id="zero 3, rule110"),
]


@pytest.mark.parametrize(("layout", "tasks"), CASES)
def test_every_layout_measures_the_same(
    folder: str, request: pytest.FixtureRequest, layout: str, tasks: list[str]
) -> None:
    world, mesh = LAYOUTS[layout]
    alone = request.getfixturevalue("alone_with_heads" if "mesh.tensor=2" in mesh else "alone")
    found = run(trainings, world, folder, [(f"{task}-{layout}", task, [*EVAL, *mesh]) for task in tasks], timeout=300)[
        0
    ]
    for task, rows in zip(tasks, found, strict=True):
        expected = alone[task]
        close(evaluations(rows), evaluations(expected))
        close([row["loss"] for row in rows], [row["loss"] for row in expected])


def test_data_that_cannot_be_evaluated(folder: str) -> None:
    with pytest.raises(UserError, match="the data has no split 'nothing'; it has test, train"):
        training(folder, "refused", "text", [*EVAL, "data.eval_split=nothing"])
