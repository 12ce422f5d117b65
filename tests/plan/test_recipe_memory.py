"""Planned memory against measured, for shipped recipes on data of their tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleeptrain.cli.main import main
from sleeptrain.parallel.process import init_distributed
from sleeptrain.plan import make_plan, resolve_data
from sleeptrain.recipe import check_batch, load_recipe, open_run
from sleeptrain.train.layout import resolve_layout
from sleeptrain.train.setup import open_reader, set_up
from sleeptrain.train.step import read_step, train_step
from tests.distributed import run
from tests.sources import ROOT
from tests.storages import StorageCounter, live_storages

RECIPES = {
    "rule110-tiny": ("rule110-tiny", []),
    "rule110-demo": ("rule110-demo", []),
    "rule110-small": ("rule110-small", []),
    "recall-tiny": ("recall-tiny", []),
    "text-small": ("text", []),
    "rule110": ("rule110", ["train.batch=2", "data.workers=0"]),
}
"""The task of the data of each recipe, and changes: batch and workers of the last one are for a GPU."""
SAMPLE = ("rule110-tiny",)
"""Those that CI measures."""


def step_bytes(folder: str, name: str, changes: list[str]) -> tuple[float, float]:
    """Bytes live between steps plus the peak of a step; measured and planned. The first step allocates the optimizer's moments."""
    process = init_distributed()
    words = [f"data.sources=[{{path: {folder}/data}}]", f"run_dir={folder}/run", *changes]
    resolved = load_recipe(name, words)
    batch = check_batch(resolved, 1)
    reader = open_reader(resolved.value, batch, 0)
    resolved, data_layout = resolve_data(resolved)
    layout = resolve_layout(resolved.value, data_layout.windows, batch, reader.sizes)
    before = live_storages()
    setup = set_up(layout, reader, process, open_run(resolved, name, reader.manifest), {})
    program = layout.program()
    train_step(setup.context, read_step(reader), program, 1.0)
    batches = read_step(reader)
    between = sum(storage.nbytes() for address, storage in live_storages().items() if address not in before)
    with StorageCounter() as storages:
        train_step(setup.context, batches, program, 1.0)
    return between + storages.peak, make_plan(layout, data_layout).memory[0].total


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SAMPLE else pytest.mark.exhaustive) for n in RECIPES]
)
def test_memory_of_a_shipped_recipe_is_as_planned(name: str, tmp_path: Path) -> None:
    task, changes = RECIPES[name]
    sizes = [f"paths=[{ROOT / 'docs'}]"] if task == "text" else ["train=512", "test=8"]
    assert main(["data", "build", task, "--out", str(tmp_path / "data"), *sizes]) == 0
    [(measured, planned)] = run(step_bytes, 1, str(tmp_path), name, changes, timeout=600)
    print(f"{name}: {measured / planned:.3f} of {planned / 2**20:.1f} MiB planned")
    assert 0.9 < measured / planned < 1.1
