"""Training on meshes of real processes: the same losses and gradient norms as one process, step by step."""

from pathlib import Path

import pytest
import torch

from sleeptrain.config.errors import UserError
from sleeptrain.engine.process import init_distributed
from sleeptrain.recipe import load_recipe
from sleeptrain.train.setup import open_reader
from tests.distributed import run
from tests.train.jobs import SMALL, recipe_file, text_data, trained

STEPS = [
    "sleep.window=16", "sleep.passes=3", "sleep.loop.trigger=every", "train.batch=8", "train.steps=12", "checkpoint.every=0",
    "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "optim.clip=0.3", "train.retain=window",
]  # fmt: skip


def on_mesh(folder: str, name: str, *overrides: str):
    where = Path(folder)
    return trained(where, name, where / "text", [*STEPS, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("meshes")
    text_data(made)
    recipe_file(made)
    return str(made)


@pytest.fixture(scope="module")
def alone(folder):
    return run(on_mesh, 1, folder, "alone", timeout=300)[0]


def equal(found, expected, weights=2e-5):
    for key in ("loss", "grad_norm", "state_norm"):
        assert [row[key] for row in found[0]] == pytest.approx([row[key] for row in expected[0]], rel=1e-5), key
    assert [row["targets"] for row in found[0]] == [row["targets"] for row in expected[0]]
    assert found[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=weights, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_that_share_every_layer(folder, alone):
    """Gradients are clipped in every step, so that their norm matters."""
    equal(run(on_mesh, 2, folder, "tensor", "mesh.tensor=2", timeout=300)[0], alone)


def test_two_stages(folder, alone):
    """The embedding is the head, and lies on both."""
    equal(run(on_mesh, 2, folder, "pipe", "mesh.pipe=2", timeout=300)[0], alone)


FOURS = {
    "data, tensor": ["mesh.data=2", "mesh.tensor=2"],
    "data, tensor, zero 2": ["mesh.data=2", "mesh.tensor=2", "mesh.zero=2"],
    "data, pipe": ["mesh.data=2", "mesh.pipe=2"],
    "data, pipe, zero 2": ["mesh.data=2", "mesh.pipe=2", "mesh.zero=2", "train.micro=1", "mesh.group=2"],
    "pipe, tensor": ["mesh.pipe=2", "mesh.tensor=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", FOURS)
def test_four_processes(folder, alone, mesh):
    equal(run(on_mesh, 4, folder, mesh.replace(", ", "-"), *FOURS[mesh], timeout=300)[0], alone)


@pytest.mark.slow
def test_in_bf16_it_stays_near(folder, alone):
    rows, _ = run(on_mesh, 2, folder, "bf16", "mesh.tensor=2", "train.precision=bf16", timeout=300)[0]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone[0]], rel=0.03)


def test_a_world_that_does_not_fit_is_an_error_of_the_user(folder):
    data = f"data.sources=[{{path: {folder}/text}}]"
    job = load_recipe(recipe_file(Path(folder)), [*SMALL, *STEPS, "mesh.tensor=2", data]).value
    with pytest.raises(UserError, match="does not fill 1 process: start 2"):
        open_reader(job, init_distributed())
    for wrong, message in (("mesh.tensor=4", "kv_heads = 2"), ("optim.name=muon", "use optim.name=adamw")):
        with pytest.raises(UserError, match=message):
            load_recipe(recipe_file(Path(folder)), [*SMALL, *STEPS, "mesh.tensor=2", "optim.adam_lr=0.1", wrong, data])
