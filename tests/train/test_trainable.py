"""Training with frozen weights: every layout and executor against one process, resuming, and a second stage with all weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sleeptrain import checkpoint
from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train.trained import trained_weights
from tests.distributed import run
from tests.train.compare import EPS, assert_same_training
from tests.train.gather import full_weights
from tests.train.jobs import SMALL, by_autograd, recipe_file, text_data, trained
from tests.train.parity import COMMON

PARTS = [
    *COMMON, EPS, "sleep.loop.trigger=every", "train.steps=3", "optim.weight_decay=0.5", "sleep.gradient.clip_state=0.02",
    "optim.schedule.name=constant",
]  # fmt: skip
FROZEN = 'optim.trainable=["layers.G"]'
MUON = ["optim.name=muon", "optim.lr=0.00025", "optim.adam_lr=0.0005", "optim.ns_dtype=float32"]
ALONE: dict[str, list[str]] = {
    "autograd": [],
    "executor": ["train.recompute=block"],
    "bf16": ["train.precision=bf16"],
    "MLPs of all blocks": ['optim.trainable=["layers.*.mlp"]', "train.recompute=window"],
}
TWO: dict[str, list[str]] = {
    "ZeRO 1": ["mesh.data=2"],
    "ZeRO 2": ["mesh.data=2", "mesh.zero=2", "train.micro=2", "train.recompute=window"],
    "ZeRO 3": ["mesh.data=2", "mesh.zero=3", "train.recompute=pass"],
    "tensor": ["mesh.tensor=2", "train.recompute=pass"],
    "sequence": ["mesh.tensor=2", "mesh.sequence=true"],
    "pipe": ["mesh.pipe=2", "train.recompute=window"],
}


SAMPLE, REST = ("ZeRO 1", "ZeRO 3"), ("ZeRO 2", "tensor", "sequence", "pipe")


def trainings(folder: str, cases: dict[str, list[str]]):
    """Rows, weights after the last step and initial weights of every case, on the current processes."""
    found = {}
    for name, more in cases.items():
        first: dict[str, torch.Tensor] = {}

        def prepare(setup, name=name, first=first):
            first.update(full_weights(setup) or {})
            if name == "autograd":
                by_autograd(setup)

        where = Path(folder)
        rows, weights = trained(
            where, name.replace(", ", "-").replace(" ", "-"), where / "text", [*PARTS, FROZEN, *more], prepare
        )
        found[name] = rows, weights, first
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trainable")
    text_data(made)
    recipe_file(made)
    return str(made)


def names_of(folder: str, *more: str) -> frozenset[str]:
    data = ["data.sources=[{path: nowhere}]", "model.vocab=260"]
    recipe = load_recipe(recipe_file(Path(folder)), [*SMALL, *PARTS, FROZEN, *more, *data]).value
    return trained_weights(recipe).names


def only_these_changed(found, names):
    for name, weight in found[1].items():
        assert torch.equal(weight, found[2][name]) is (name not in names), name


@pytest.fixture(scope="module")
def alone(folder):
    return run(trainings, 1, folder, ALONE, timeout=300)[0]


@pytest.mark.slow
def test_alone(folder, alone):
    assert_same_training(alone["executor"], alone["autograd"])
    for name, found in alone.items():
        only_these_changed(found, names_of(folder, *ALONE[name]))


@pytest.mark.parametrize(
    "names", [pytest.param(SAMPLE, marks=pytest.mark.slow), pytest.param(REST, marks=pytest.mark.exhaustive)], ids=len
)
def test_two_processes(folder, alone, names):
    for name, found in run(trainings, 2, folder, {name: TWO[name] for name in names}, timeout=600)[0].items():
        try:
            assert_same_training(found, alone["autograd"])
            saved = checkpoint.load_weights(Path(folder) / name.replace(" ", "-") / "checkpoints" / "step-00000003")
            assert all(torch.equal(saved[n], weight) for n, weight in found[1].items())
            only_these_changed(found, names_of(folder))
        except AssertionError as error:
            raise AssertionError(name) from error


def one_training(folder: str, name: str, more: list[str]):
    """Train or resume a run: (rows, weights after the last step, weights before the first, steps that the optimizer had made)."""
    first: dict[str, torch.Tensor] = {}
    steps: list[int] = []

    def prepare(setup):
        first.update(full_weights(setup) or {})
        steps.append(setup.engine.optimizer_step)

    where = Path(folder)
    rows, weights = trained(where, name, where / "text", [*PARTS, FROZEN, *more], prepare)
    return rows, weights, first, steps[0]


def halves_and_whole(folder: str, layouts: list[list[str]]):
    """Three steps in two parts and in one run, for each layout; and two steps of the run `moved` on the first one."""
    found = []
    for at, layout in enumerate(layouts):
        one_training(folder, f"halves-{at}", [*layout, "train.steps=2"])
        found.append((one_training(folder, f"halves-{at}", layout), one_training(folder, f"whole-{at}", layout)))
    one_training(folder, "moved", [*layouts[0], "train.steps=2"])
    return found


@pytest.mark.exhaustive
def test_resuming_is_bitwise_equal_and_layouts_may_change(folder, alone):
    layouts = [["mesh.data=2", "mesh.zero=3"], ["mesh.data=2", "train.precision=bf16"]]
    for halves, whole in run(halves_and_whole, 2, folder, layouts, timeout=600)[0]:
        assert [row["loss"] for row in halves[0]] == [row["loss"] for row in whole[0]]
        assert halves[3] == 2 and all(torch.equal(w, whole[1][n]) for n, w in halves[1].items())
    assert_same_training(run(one_training, 2, folder, "moved", ["mesh.tensor=2"], timeout=300)[0], alone["autograd"])


def two_stages(folder: str):
    """A first stage, a second one from its weights with all of them, and what is said where the first one goes on with all of them."""
    more = ["train.precision=bf16", *MUON, "train.steps=2"]
    everything = [*more, "optim.trainable=null"]
    before = one_training(folder, "first-stage", more)
    after = one_training(folder, "second-stage", [*everything, f"init_from={folder}/first-stage"])
    try:
        one_training(folder, "first-stage", [*everything, "train.steps=3"])
    except UserError as error:
        return before, after, error.errors
    raise AssertionError("the first stage went on with other weights")


@pytest.mark.slow
def test_a_second_stage_trains_all_weights_with_new_moments(folder):
    """In bf16, where frozen weights have no fp32 master, and with Muon."""
    before, after, errors = run(two_stages, 1, folder)[0]
    assert after[3] == 0 and all(torch.equal(weight, before[1][name]) for name, weight in after[2].items())
    assert not any(torch.equal(weight, after[1][name]) for name, weight in after[2].items())
    files = (Path(folder) / "first-stage" / "checkpoints" / "step-00000002").glob("*.safetensors")
    assert {path.name: safe_names(path) for path in files} == {
        "part-00000.weights.safetensors": set(after[2]),
        "part-00000.moments.safetensors": names_of(folder),
    }
    told, changed = errors
    assert f"run_dir=..., from its weights with init_from={folder}/first-stage" in told
    assert changed == 'optim.trainable = null (command line), was ["layers.G"]'


def safe_names(path: Path) -> set[str]:
    """The weights that a file of a checkpoint is about."""
    with safe_open(path, "pt") as file:
        return {key.rpartition("/")[0] for key in file.keys()}  # noqa: SIM118


COUNTED_ELSEWHERE: dict[str, list[str]] = {
    "pipe": ["mesh.pipe=2", "model.tie=true", 'optim.trainable=["embed"]'],
    "tensor": ["mesh.tensor=2", 'optim.trainable=["layers.*.norm1"]'],
}


def norms(folder: str, cases: dict[str, list[str]]) -> dict[str, list[float]]:
    """Gradient norms of every case in bf16."""
    where = Path(folder)
    options = [*PARTS, "train.precision=bf16", "train.steps=2"]
    return {
        name: [row["grad_norm"] for row in trained(where, f"norms-{name}", where / "text", [*options, *more])[0]]
        for name, more in cases.items()
    }


@pytest.mark.exhaustive
def test_a_process_may_hold_trained_weights_that_others_hold_too(folder):
    """The norm counts a tied embedding on the first stage, and replicated norms on the first process of the tensor axis."""
    alone = {f"{name}-alone": [text for text in more if "mesh" not in text] for name, more in COUNTED_ELSEWHERE.items()}
    expected, found = (run(norms, world, folder, cases)[0] for world, cases in ((1, alone), (2, COUNTED_ELSEWHERE)))
    for name, values in found.items():
        assert values == pytest.approx(expected[f"{name}-alone"], rel=5e-3), name
