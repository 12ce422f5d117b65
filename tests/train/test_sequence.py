"""Training with sequence parallelism matches one process step by step, residuals included."""

from pathlib import Path

import pytest
import torch

from tests.distributed import run
from tests.train.compare import EPS, assert_clipped, assert_same_training
from tests.train.jobs import recipe_file, text_data, trained

STEPS = [
    "train.steps=12", "train.batch=4", "train.micro=1", "checkpoint.every=0", "optim.clip=0.3", EPS, "sleep.window=16",
    "sleep.passes=3", "sleep.loop.trigger=every", "model.layers=AGAG", "model.attention.heads=4", "model.attention.kv_heads=4",
    "model.attention.head_dim=8", "model.deltanet.key_heads=4", "model.deltanet.value_heads=4", "model.deltanet.head_dim=8",
]  # fmt: skip


def training(folder: str, name: str, overrides: list[str]):
    where = Path(folder)
    return trained(where, name, where / "text", [*STEPS, "train.recompute=window", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sequence")
    text_data(made)
    recipe_file(made)
    return str(made)


def equal(found, expected):
    """Every row is its own micro-batch, so residuals are per row and do not depend on the process."""
    assert_same_training(found, expected, keys=("loss", "grad_norm", "state_norm", "residual"))
    assert_clipped(found[0], 0.3)


SIX = ["train.steps=6", "train.batch=2", "model.layers=AG", "optim.schedule.name=constant"]
FEW = ["train.steps=3", "train.batch=2", "model.layers=AG"]
SHARED = ["mesh.tensor=2", "mesh.sequence=true"]


def test_two_processes_match_one(folder):
    expected = run(training, 1, folder, "alone, few", FEW)[0]
    equal(run(training, 2, folder, "few", [*FEW, *SHARED], timeout=300)[0], expected)


def stopped_and_resumed(folder: str):
    """Six steps in two halves, and in one run."""
    more = [*SIX, *SHARED, "train.precision=bf16"]
    training(folder, "halves", [*more, "train.steps=3"])
    return training(folder, "halves", more), training(folder, "whole", more)


@pytest.mark.slow
def test_resume_in_bf16_continues_exactly(folder):
    halves, whole = run(stopped_and_resumed, 2, folder, timeout=600)[0]
    for key in ("loss", "grad_norm", "residual"):
        assert [row[key] for row in halves[0]] == [row[key] for row in whole[0]]
    assert len(whole[1]) > 20 and all(torch.equal(weight, whole[1][name]) for name, weight in halves[1].items())
    alone = run(training, 1, folder, "constant", SIX)[0]
    assert [row["loss"] for row in whole[0]] == pytest.approx([row["loss"] for row in alone[0]], rel=0.03)
