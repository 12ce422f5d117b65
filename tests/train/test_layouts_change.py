"""Runs that are continued in other layouts: the next steps are those of a run that never stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run
from tests.train.jobs import text_data, trained

STEPS = 5
"""Steps in each layout."""
COMMON = [
    "sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "train.batch=8", "train.micro=2", "checkpoint.every=0",
    "optim.schedule.name=constant", "model.layers=AGAG", "model.attention.kv_heads=2", "model.deltanet.key_heads=2",
]  # fmt: skip
MUON = ["optim.name=muon", "optim.lr=0.02", "optim.adam_lr=0.003", "optim.ns_dtype=float32"]
Layouts = list[tuple[int, list[str]]]
"""Processes and overrides."""
CHAINS: dict[str, tuple[list[str], Layouts]] = {
    "adamw, data 4, 2, 4": ([], [(4, ["train.micro=1"]), (2, []), (4, ["train.micro=1"])]),
    "adamw, pipe 2, tensor 2, 1, data 2 with ZeRO 2": (
        [], [(2, ["mesh.pipe=2"]), (2, ["mesh.tensor=2"]), (1, []), (2, ["mesh.zero=2"])]
    ),
    "adamw, ZeRO 3, 1": ([], [(2, ["mesh.zero=3", "train.recompute=pass"]), (1, [])]),
    "muon, data 4, pipe 2, 1": (MUON, [(4, ["train.micro=1"]), (2, ["mesh.pipe=2"]), (1, [])]),
}  # fmt: skip


def continued(folder: str, name: str, overrides: list[str]) -> tuple[list[dict[str, Any]], Any]:
    """Train on to a step; rows of metrics, and rate and decay of every parameter group."""
    groups = {}

    def look(setup: Any) -> None:
        groups.update({g["name"]: (g["peak"], g["weight_decay"]) for g in setup.engine.optimizer.param_groups})

    rows, _ = trained(Path(folder), name, Path(folder) / "text", [*COMMON, *overrides], spoil=look)
    return rows, groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("layouts")
    text_data(made)
    return str(made)


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_goes_on_in_other_layouts(folder: str, chain: str) -> None:
    optim, layouts = CHAINS[chain]
    name, total = chain.replace(", ", "-").replace(" ", "-"), STEPS * len(layouts)
    rows: list[dict[str, Any]] = []
    groups = []
    for number, (world, mesh) in enumerate(layouts, 1):
        steps = f"train.steps={STEPS * number}"
        found = run(continued, world, folder, name, [*optim, *mesh, steps], timeout=300)
        rows = found[0][0]
        groups += [rank[1] for rank in found]
    (whole, all_groups), *_ = run(continued, 1, folder, f"{name}-whole", [*optim, f"train.steps={total}"], timeout=300)
    assert [row["step"] for row in rows] == list(range(1, total + 1))
    for row, expected in zip(rows, whole, strict=True):
        for key in ("loss", "grad_norm"):
            assert math.isclose(row[key], expected[key], rel_tol=1e-5), (row["step"], key, row[key], expected[key])
    assert all(group == all_groups for group in groups)
