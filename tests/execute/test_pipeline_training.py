"""Training in stages: two and four processes follow one process step by step, whatever the program and the policy."""

from pathlib import Path

import pytest

from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, text_data, trained

# AdamW divides a gradient by its own size plus `eps`: with 1e-8, entries that are nothing but rounding (here those of keys
# that sliding eviction has hardly used) move a full step either way. One process that only cuts its rows into other
# micro-batches then differs from itself by 2e-5 in the state's norm after 12 steps; with 1e-6 by 1e-6.
STEPS = [
    "optim.eps=1e-6", "train.steps=12", "train.batch=12", "checkpoint.every=0", "model.layers=AGGGGAGG", "optim.clip=0.3", "optim.lr=0.003",
    "sleep.passes=3", "sleep.window=16", "sleep.loop.trigger=every",
]  # fmt: skip
RUNS = {
    "sliding, range": ["sleep.evict.mode=sliding", "sleep.loop.layers=[2, 6]", "model.tie=false", "train.recompute=window"],
    "context": ["sleep.loop.trigger=context", "train.recompute=block", "data=rule110"],
    "context, range, untied": [
        "sleep.loop.trigger=context", "sleep.loop.layers=[1, 7]", "sleep.loop.feedback=embeddings", "model.tie=false", "data=rule110",
    ],
    "ramp": ["sleep.passes={start: 1, stop: 3, steps: 6}", "model.tie=false", "train.recompute=window", "train.offload=true"],
}  # fmt: skip
SOME = ("sliding, range", "context")
MESHES = {
    2: {"2": (["mesh.pipe=2"], RUNS), "2 in twos": (["mesh.pipe=2", "train.micro=3", "mesh.group=2"], SOME)},
    4: {
        "4": (["mesh.pipe=4", "mesh.group=4"], RUNS),
        "4 in sixes": (["mesh.pipe=4", "mesh.group=6"], SOME),
    },
}


def all_of_them(folder, meshes):
    """Every run on every mesh of as many processes as there are."""
    where, found = Path(folder), {}
    for mesh, (layout, names) in meshes.items():
        for name in names:
            data = where / ("rule110" if "data=rule110" in RUNS[name] else "text")
            chosen = [*STEPS, *(o for o in RUNS[name] if not o.startswith("data=")), *layout]
            found[name, mesh] = trained(where, f"{name} {mesh}".replace(", ", "-"), data, chosen)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("stages")
    text_data(made)
    rule110_data(made, width=12)
    recipe_file(made)
    return str(made)


@pytest.fixture(scope="module")
def alone(folder):
    return run(all_of_them, 1, folder, {"1": ([], RUNS)}, timeout=600)[0]


@pytest.mark.slow
@pytest.mark.parametrize("world", MESHES)
def test_stages_follow_one_process(folder, alone, world):
    ranks = run(all_of_them, world, folder, MESHES[world], timeout=900)
    for (name, mesh), (rows, weights) in ranks[0].items():
        expected, whole = alone[name, "1"]
        for key in ("loss", "grad_norm", "state_norm"):
            found = [row[key] for row in rows]
            assert found == pytest.approx([row[key] for row in expected], rel=1e-5), (name, mesh, key)
        assert any(row["grad_norm"] > 0.3 for row in rows), "nothing was clipped"
        assert [row["targets"] for row in rows] == [row["targets"] for row in expected]
        assert weights.keys() == whole.keys()
        worst = max((weights[n] - w).abs().max().item() for n, w in whole.items())
        assert worst < 2e-4, (name, mesh, worst)
