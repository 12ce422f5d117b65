"""Bit-exact resume in ten layouts: metrics, and the hashes of weights, moments and random states of every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sleeptrain import checkpoint
from sleeptrain.checkpoint.format import CONFIG, FileRecord, read_index
from tests.distributed import run
from tests.train.jobs import recipe_file, text_data, trained

COMMON = [
    "train.batch=8", "train.micro=2", "sleep.window=16", "sleep.loop.trigger=every", "model.layers=AGAG", "checkpoint.every=0",
    "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "optim.schedule.name=constant", "train.recompute=window",
]  # fmt: skip
MUON = ["optim.name=muon", "optim.lr=0.02", "optim.adam_lr=0.003", "optim.ns_dtype=float32"]
ONE, THREE = "sleep.passes=1", "sleep.passes=3"
WORKERS = "data.workers=2"
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one, N = 1": (1, [ONE]),
    "one, N = 3, workers": (1, [THREE, WORKERS, *MUON]),
    "data 2, N up to 3": (2, ["sleep.passes={low: 1, high: 3}", WORKERS]),
    "data 2, ZeRO 2": (2, [THREE, "mesh.zero=2", "train.precision=bf16"]),
    "data 2, ZeRO 3": (2, [ONE, "mesh.zero=3", "train.recompute=pass", WORKERS]),
    "tensor 2": (2, [THREE, "mesh.tensor=2", WORKERS]),
    "pipe 2": (2, [THREE, "mesh.pipe=2", "train.precision=bf16"]),
    "data 4": (4, [ONE, "mesh.data=4", *MUON]),
    "data 2, pipe 2": (4, [THREE, "mesh.data=2", "mesh.pipe=2", WORKERS]),
    "data 2, tensor 2": (4, [ONE, "mesh.data=2", "mesh.tensor=2"]),
}
SAMPLE = ("one, N = 3, workers", "data 2, tensor 2")
"""Those that CI runs."""


def saved(run_folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file of the newest checkpoint but the configuration, which has the number of steps."""
    newest = checkpoint.latest(run_folder / "checkpoints")
    assert newest is not None and newest.name == "step-00000006"
    return {name: record for name, record in read_index(newest).files.items() if name != CONFIG}


def whole_and_halves(folder: str, overrides: list[str]) -> list[list[dict[str, Any]]]:
    """Metrics of six steps in one go and in two, the second after other draws from the random generators."""
    where, words, random_state = Path(folder), [*COMMON, *overrides], checkpoint.random_state()
    whole, _ = trained(where, "whole", where / "text", [*words, "train.steps=6"])
    checkpoint.set_random_state(random_state)
    trained(where, "halves", where / "text", [*words, "train.steps=3"])
    torch.manual_seed(99)
    halves, _ = trained(where, "halves", where / "text", [*words, "train.steps=6"])
    return [whole, halves]


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.slow if n in SAMPLE else pytest.mark.exhaustive) for n in LAYOUTS]
)
def test_resume_is_bit_exact(tmp_path: Path, layout: str) -> None:
    world, overrides = LAYOUTS[layout]
    text_data(tmp_path)
    recipe_file(tmp_path)
    whole, halves = run(
        whole_and_halves, world, str(tmp_path), overrides, timeout=400, daemon=WORKERS not in overrides
    )[0]
    for key in ("step", "passes", "loss", "grad_norm", "state_norm", "residual", "state_gradient"):
        assert [row[key] for row in whole] == [row[key] for row in halves], key
    files = saved(tmp_path / "whole")
    assert len(files) == 3 * world and saved(tmp_path / "halves") == files
