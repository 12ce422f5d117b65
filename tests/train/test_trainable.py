"""Training with frozen weights: every layout and executor against one process, resuming, and a second stage with all weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sleeptrain.recipe import load_recipe
from sleeptrain.train.trained import trained_weights
from tests.distributed import run
from tests.train.jobs import SMALL, by_autograd, recipe_file, text_data, trained
from tests.train.parity import COMMON

PARTS = [
    *COMMON, "sleep.loop.trigger=every", "train.steps=4", "optim.weight_decay=0.5", "sleep.gradient.clip_state=0.02",
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


def trainings(folder: str, cases: dict[str, list[str]]):
    """Rows, weights after the last step and initial weights of every case, on the current processes."""
    found = {}
    for name, more in cases.items():
        first: dict[str, torch.Tensor] = {}

        def prepare(setup, name=name, first=first):
            from tests.train.gather import full_weights

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


def equal(found, expected, rel=1e-5):
    for key in ("loss", "grad_norm", "state_norm"):
        assert [row[key] for row in found[0]] == pytest.approx([row[key] for row in expected[0]], rel=rel), key
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours["state_gradient"] == pytest.approx(theirs["state_gradient"], rel=1e-4)
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def only_these_changed(found, names):
    for name, weight in found[1].items():
        assert torch.equal(weight, found[2][name]) is (name not in names), name


@pytest.fixture(scope="module")
def alone(folder):
    return run(trainings, 1, folder, ALONE, timeout=300)[0]


def test_alone(folder, alone):
    equal(alone["executor"], alone["autograd"])
    for name, found in alone.items():
        only_these_changed(found, names_of(folder, *ALONE[name]))


def test_two(folder, alone):
    for name, found in run(trainings, 2, folder, TWO, timeout=600)[0].items():
        try:
            equal(found, alone["autograd"])
            only_these_changed(found, names_of(folder))
        except AssertionError as error:
            raise AssertionError(name) from error
