"""Training on meshes of two processes: parity with one process, resume, NaN gradients, bf16. (All layouts: test_parity.py.)"""

from pathlib import Path

import pytest
import torch

from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train.layout import resolve_batch
from tests.distributed import run
from tests.train.compare import EPS, assert_same_training
from tests.train.jobs import SMALL, recipe_file, text_data, trained

STEPS = [
    "sleep.window=16", "sleep.passes=3", "sleep.loop.trigger=every", "train.batch=8", "train.steps=12", "checkpoint.every=0",
    "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "optim.clip=0.3", EPS, "train.recompute=window",
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


def test_tensor_parallel_training_matches_one_process(folder, alone):
    """Gradients are clipped in every step, so the weights depend on their norm."""
    assert_same_training(run(on_mesh, 2, folder, "tensor", "mesh.tensor=2", timeout=300)[0], alone)


def test_pipeline_training_matches_one_process(folder, alone):
    """Embedding and head are tied, so both stages have the matrix."""
    assert_same_training(run(on_mesh, 2, folder, "pipe", "mesh.pipe=2", timeout=300)[0], alone)


@pytest.mark.slow
def test_bf16_stays_close_to_fp32(folder, alone):
    rows, _ = run(on_mesh, 2, folder, "bf16", "mesh.tensor=2", "train.precision=bf16", timeout=300)[0]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone[0]], rel=0.03)


PAIRS = [["mesh.tensor=2"], ["mesh.pipe=2"]]


def stopped_and_resumed(folder: str, name: str, overrides: list[str]):
    """Twelve steps in two halves, and in one run."""
    constant = [*overrides, "optim.schedule.name=constant"]
    on_mesh(folder, f"{name}-halves", *constant, "train.steps=6")
    return on_mesh(folder, f"{name}-halves", *constant), on_mesh(folder, f"{name}-whole", *constant)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", PAIRS, ids=str)
def test_resume_continues_exactly(folder, mesh):
    halves, whole = run(stopped_and_resumed, 2, folder, f"resumed-{mesh[0][5:9]}", mesh, timeout=300)[0]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in halves[0]] == [row[key] for row in whole[0]]
    assert all(torch.equal(weight, whole[1][name]) for name, weight in halves[1].items())


def spoil(setup):
    """Set a gradient on the last rank to NaN in the second step and assert that this step changes no weight on any rank."""
    engine, done = setup.engine, {"steps": 0}
    weight = next(p for n, p in engine.module.named_parameters() if n.endswith("mlp.up.weight"))
    last, step = setup.process.rank == setup.process.world - 1, engine.step

    def watched(*args, **kwargs):
        held = [p.detach().clone() for p in engine.module.parameters()]
        report = step(*args, **kwargs)
        done["steps"] += 1
        unchanged = all(torch.equal(p, q) for p, q in zip(engine.module.parameters(), held, strict=True))
        assert unchanged is report.skipped is (done["steps"] == 2)
        return report

    weight.register_hook(lambda g: g * float("nan") if last and done["steps"] == 1 else g)
    object.__setattr__(engine, "step", watched)


def spoiled(folder: str, name: str, overrides: list[str]):
    where = Path(folder)
    return trained(where, name, where / "text", [*STEPS, *overrides, "train.steps=4"], spoil=spoil)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", PAIRS, ids=str)
def test_a_nan_on_one_rank_skips_the_step_on_all_ranks(folder, mesh):
    rows, weights = run(spoiled, 2, folder, f"spoiled-{mesh[0][5:9]}", mesh, timeout=300)[0]
    assert [row["skipped"] for row in rows] == [False, True, False, False]
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_mesh_that_does_not_fit_the_processes_is_a_user_error(folder):
    data = f"data.sources=[{{path: {folder}/text}}]"
    job = load_recipe(recipe_file(Path(folder)), [*SMALL, *STEPS, "mesh.tensor=2", data]).value
    with pytest.raises(UserError, match=r"mesh\.tensor = 2: 1 process was started; start 2"):
        resolve_batch(job, 1)
    for wrong, message in (("mesh.tensor=4", "kv_heads = 2"), ("optim.name=muon", "use optim.name=adamw")):
        with pytest.raises(UserError, match=message):
            load_recipe(recipe_file(Path(folder)), [*SMALL, *STEPS, "mesh.tensor=2", "optim.adam_lr=0.1", wrong, data])
