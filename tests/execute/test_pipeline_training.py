"""Pipelined training: runs on two and four stages equal the run on one process at every step."""

from pathlib import Path

import pytest

from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

# AdamW divides a gradient by its own size plus `eps`. With 1e-8, entries that are pure rounding error (here those of keys
# that sliding eviction hardly uses) move by a full step in a random direction: two runs on one process with different
# micro-batches differ by 2e-5 in the state's norm after 12 steps. With 1e-6 they differ by 1e-6.
STEPS = [
    "optim.eps=1e-6", "train.steps=4", "train.batch=12", "checkpoint.every=0", "model.layers=AGGGGAGG", "optim.clip=0.3", "optim.lr=0.003",
    "sleep.passes=3", "sleep.window=16", "sleep.loop.trigger=every",
]  # fmt: skip
RUNS = {
    "sliding, range": ["sleep.evict.mode=sliding", "sleep.loop.layers=[2, 6]", "model.tie=false", "train.recompute=window"],
    "context": ["sleep.loop.trigger=context", "train.recompute=block", "data=rule110", "sleep.window=13"],
    "context, range, untied": [
        "sleep.loop.trigger=context", "sleep.loop.layers=[1, 7]", "sleep.loop.feedback=embeddings", "model.tie=false", "data=rule110",
        "sleep.window=13",
    ],
    "ramp": ["sleep.passes={start: 1, stop: 3, steps: 3}", "model.tie=false", "train.recompute=window", "train.offload=true"],
}  # fmt: skip
FEWER_RUNS = ("sliding, range", "context")
MESHES = {
    2: {
        "2": (["mesh.pipe=2"], RUNS),
        "2, groups of two": (["mesh.pipe=2", "train.micro=3", "mesh.group=2"], FEWER_RUNS),
    },
    4: {
        "4": (["mesh.pipe=4", "mesh.group=4"], RUNS),
        "4, groups of six": (["mesh.pipe=4", "mesh.group=6"], FEWER_RUNS[:1]),
    },
}
LONG = {4: {"4, groups of six": (["mesh.pipe=4", "mesh.group=6"], FEWER_RUNS[1:])}}
"""What `make drills` trains beside."""


def train_all(folder, meshes):
    """Metrics and final weights of the runs on every mesh, by run and mesh."""
    root, results = Path(folder), {}
    for mesh, (layout, names) in meshes.items():
        for name in names:
            data = root / ("rule110" if "data=rule110" in RUNS[name] else "text")
            overrides = [*STEPS, *(o for o in RUNS[name] if not o.startswith("data=")), *layout]
            results[name, mesh] = trained(root, f"{name} {mesh}".replace(", ", "-"), data, overrides)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    text_data(root)
    rule110_data(root, width=12)
    recipe_file(root)
    return str(root)


@pytest.fixture(scope="module")
def one_process(folder):
    return run(train_all, 1, folder, {"1": ([], RUNS)}, timeout=600)[0]


@pytest.mark.parametrize(
    ("world", "meshes"),
    [
        *(pytest.param(world, meshes, marks=pytest.mark.slow, id=str(world)) for world, meshes in MESHES.items()),
        *(
            pytest.param(world, meshes, marks=pytest.mark.exhaustive, id=f"{world}, long")
            for world, meshes in LONG.items()
        ),
    ],
)
def test_pipelined_runs_equal_one_process(folder, one_process, world, meshes):
    ranks = run(train_all, world, folder, meshes, timeout=900)
    for (name, mesh), (rows, weights) in ranks[0].items():
        expected, whole = one_process[name, "1"]
        for key in ("loss", "grad_norm", "state_norm"):
            series = [row[key] for row in rows]
            assert series == pytest.approx([row[key] for row in expected], rel=1e-5), (name, mesh, key)
        for ours, theirs in zip(rows, expected, strict=True):
            assert ours["state_gradient"] == pytest.approx(theirs["state_gradient"], rel=1e-4), (name, mesh)
        assert any(row["grad_norm"] > 0.3 for row in rows), "no step was clipped"
        assert [row["targets"] for row in rows] == [row["targets"] for row in expected]
        assert weights.keys() == whole.keys()
        worst = max((weights[n] - w).abs().max().item() for n, w in whole.items())
        assert worst < 2e-4, (name, mesh, worst)
