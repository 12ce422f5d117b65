"""Training where processes share the tokens between layers follows one process step by step, residuals included."""

from pathlib import Path

import pytest
import torch

from sleeptrain.config.errors import UserError
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

STEPS = [
    "train.steps=12", "train.batch=4", "train.micro=1", "checkpoint.every=0", "optim.clip=0.3", "sleep.window=16",
    "sleep.passes=3", "sleep.loop.trigger=every", "model.layers=AGAG", "model.attention.heads=4", "model.attention.kv_heads=4",
    "model.attention.head_dim=8", "model.deltanet.key_heads=4", "model.deltanet.value_heads=4", "model.deltanet.head_dim=8",
]  # fmt: skip
PROGRAMS = {
    "tied": ["train.retain=window"],
    "sliding, range": ["sleep.evict.mode=sliding", "sleep.loop.layers=[1, 3]", "model.tie=false", "train.retain=pass"],
    "normed": ["sleep.loop.feedback=normed", "train.retain=block", "train.offload=true"],
}  # fmt: skip
MESHES = {
    2: {"tensor 2": (["mesh.tensor=2"], PROGRAMS)},
    4: {
        "tensor 4": (["mesh.tensor=4"], ["tied"]),
        "pipe 2, tensor 2": (["mesh.pipe=2", "mesh.tensor=2"], ["tied", "sliding, range"]),
        "data 2, tensor 2": (["mesh.data=2", "mesh.tensor=2", "mesh.zero=2"], ["tied"]),
    },
}


def training(folder: str, program: str, name: str, overrides: list[str]):
    where, run_name = Path(folder), f"{program} {name}".replace(", ", "-").replace(" ", "-")
    return trained(where, run_name, where / "text", [*STEPS, *PROGRAMS[program], *overrides])


def trainings(folder: str, meshes):
    """One after the other in the processes that are there."""
    return {
        (program, mesh): training(folder, program, mesh, layout)
        for mesh, (layout, programs) in meshes.items()
        for program in programs
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sequence")
    text_data(made)
    recipe_file(made)
    return str(made)


def equal(found, expected):
    """Every row is a micro-batch, so that residuals are those of one row, whoever has it."""
    for key in ("loss", "grad_norm", "state_norm", "residual"):
        assert [row[key] for row in found[0]] == pytest.approx([row[key] for row in expected[0]], rel=1e-5), key
    assert [row["targets"] for row in found[0]] == [row["targets"] for row in expected[0]]
    assert all(row["grad_norm"] > 0.3 for row in found[0]), "nothing was clipped"
    assert found[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


FEW = ["train.steps=3", "train.batch=2", "model.layers=AG"]
SHARED = ["mesh.tensor=2", "mesh.sequence=true"]


def refused_and_trained(folder: str):
    """What is said about windows of 9 tokens, and a training."""
    data, errors = rule110_data(Path(folder)), list[str]()
    try:
        trained(Path(folder), "refused", data, [*STEPS, "sleep.loop.trigger=context", *SHARED])
    except UserError as error:
        errors = error.errors
    return errors, training(folder, "tied", "few", [*FEW, *SHARED])


def test_two_processes_follow_one_where_windows_divide(folder):
    expected = run(training, 1, folder, "tied", "alone, few", FEW)[0]
    first, second = run(refused_and_trained, 2, folder, timeout=300)
    assert len(first[0]) == 1 and second[0] == [], "said once"
    assert "mesh.sequence: windows of 9 tokens" in first[0][0] and "mesh.tensor = 2" in first[0][0]
    equal(first[1], expected)


@pytest.mark.slow
def test_whatever_the_mesh(folder):
    alone = run(trainings, 1, folder, {"1": ([], PROGRAMS)}, timeout=600)[0]
    for world, meshes in MESHES.items():
        shared = {mesh: ([*layout, "mesh.sequence=true"], programs) for mesh, (layout, programs) in meshes.items()}
        for (program, mesh), found in run(trainings, world, folder, shared, timeout=1500)[0].items():
            try:
                equal(found, alone[program, "1"])
            except AssertionError as error:
                raise AssertionError(f"{program}, {mesh}") from error


def stopped_and_resumed(folder: str):
    """Twelve steps at once, and in two halves."""
    more = [*SHARED, "train.precision=bf16", "optim.schedule.name=constant"]
    training(folder, "tied", "halves", [*more, "train.steps=6"])
    return training(folder, "tied", "halves", more), training(folder, "tied", "whole", more)


@pytest.mark.slow
def test_resume_in_bf16_continues_exactly(folder):
    halves, whole = run(stopped_and_resumed, 2, folder, timeout=600)[0]
    for key in ("loss", "grad_norm", "residual"):
        assert [row[key] for row in halves[0]] == [row[key] for row in whole[0]]
    assert len(whole[1]) > 20 and all(torch.equal(weight, whole[1][name]) for name, weight in halves[1].items())
    alone = run(training, 1, folder, "tied", "constant", ["optim.schedule.name=constant"])[0]
    assert [row["loss"] for row in whole[0]] == pytest.approx([row["loss"] for row in alone[0]], rel=0.03)
