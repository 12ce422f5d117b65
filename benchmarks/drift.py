"""How far trainings of `rule110-small` drift apart: compiled runs from eager ones, and eager ones from each other.

Rounding grows from step to step, whatever it comes from. Compiled blocks round elsewhere than eager ones, so their runs are compared
with eager runs of which one initial weight is the next float32. One such distance says little, since the growth is chaotic: every start is
trained eager and compiled, and all pairs of runs are compared. All runs read the same rows on one thread.

    python -m benchmarks.drift [--steps 200] [--out benchmarks/results/drift.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sleep_data.build import build_task
from sleeptrain.parallel.collectives import on_first_rank
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed, shutdown_distributed
from sleeptrain.recipe import check_batch, complete, load_recipe, open_run
from sleeptrain.recipe.task_files import task_file
from sleeptrain.train import setup
from sleeptrain.train.layout import resolve_layout
from sleeptrain.train.log import read_metrics
from sleeptrain.train.loop import train

RECIPE, ROWS = "rule110-small", 128
STARTS = (
    None, "embed.weight", "layers.0.mixer.q.weight", "layers.0.mixer.v.weight", "layers.0.mixer.o.weight",
    "layers.0.mlp.up.weight", "layers.1.mixer.q.weight", "layers.1.mixer.v.weight", "layers.1.mixer.b.weight",
    "layers.1.mixer.o.weight", "layers.1.mlp.gate.weight", "layers.1.mlp.down.weight",
)  # fmt: skip
"""The matrix of which one weight is moved; None: all weights as drawn."""


@dataclass(frozen=True)
class Trained:
    """Losses step by step, and the weights after the last step."""

    losses: list[float]
    weights: Mapping[str, Tensor]

    def apart(self, other: Trained) -> dict[str, float]:
        """Largest and mean relative distance of a loss, and the relative distance of all weights."""
        losses = [abs(a - b) / b for a, b in zip(self.losses, other.losses, strict=True)]
        moved = sum(float((self.weights[n] - w).double().square().sum()) for n, w in other.weights.items())
        norm = sum(float(w.double().square().sum()) for w in other.weights.values())
        return {
            "largest loss": max(losses), "mean loss": sum(losses) / len(losses), "weights": math.sqrt(moved / norm),
        }  # fmt: skip


def spread(pairs: Iterable[tuple[Trained, Trained]]) -> dict[str, dict[str, float]]:
    """Least, median and greatest of each distance between the runs of all pairs."""
    found = [one.apart(other) for one, other in pairs]
    return {
        key: {kind: pick([each[key] for each in found]) for kind, pick in (("least", min), ("median", median), ("greatest", max))}
        for key in found[0]
    }  # fmt: skip


def run(folder: Path, name: str, overrides: list[str], moved: str | None) -> Trained:
    """Train on the data in `folder`; the largest weight of the matrix `moved` starts as the next float32."""
    process, new_model = init_distributed(), setup.new_model

    def nudged(*arguments: Any) -> nn.Module:
        model = new_model(*arguments)
        if moved is not None:
            with torch.no_grad():
                weight = model.get_parameter(moved).view(-1)
                at = weight.abs().argmax()
                weight[at] = torch.nextafter(weight[at], torch.tensor(math.inf))
        return model

    resolved = load_recipe(
        RECIPE, [f"data.sources=[{{path: {folder / 'data'}}}]", f"run_dir={folder / name}", *overrides]
    )
    axes, batch = init_mesh(resolved.value.mesh, process.rank, process.world), check_batch(resolved, process.world)
    reader = setup.open_reader(resolved.value, batch, axes.data.rank)
    resolved = complete(resolved, reader.manifest)
    where = on_first_rank(process, lambda: open_run(resolved, name, reader.manifest))
    layout = resolve_layout(resolved.value, reader.manifest.windows, batch, reader.sizes)
    with mock.patch.object(setup, "new_model", nudged):
        ready = setup.set_up(layout, reader, process, where, {})
    train(ready, quiet=True)
    weights = {name: weight.detach().clone() for name, weight in ready.engine.module.named_parameters()}
    return Trained([row["loss"] for row in read_metrics(where / "metrics.jsonl")], weights)


def measure(steps: int, rows: int = ROWS) -> dict[str, Any]:
    """Distances of all pairs of runs, and the first and last loss of the eager run as drawn."""
    torch.set_num_threads(1)
    common = [f"train.steps={steps}", f"train.batch={rows}", "checkpoint.every=0", "eval.every=0"]
    found: dict[bool, list[Trained]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build_task(task_file(RECIPE), folder / "data", {"train": steps * rows, "test": 64})
        for compiled, runs in found.items():
            more = [f"train.compile={str(compiled).lower()}"]
            runs += [run(folder, f"{compiled}-{i}", [*common, *more], moved) for i, moved in enumerate(STARTS)]
    shutdown_distributed()
    return {
        "starts": STARTS,
        "losses": [found[False][0].losses[0], found[False][0].losses[-1]],
        "eager from eager": spread(itertools.combinations(found[False], 2)),
        "compiled from eager": spread(itertools.product(found[True], found[False])),
        "compiled from compiled": spread(itertools.combinations(found[True], 2)),
    }


def main() -> None:
    """Print the distances, or write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the distances there as JSON")
    arguments = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("torch", "deepspeed")}
    body = {
        "command": f"python -m benchmarks.drift --steps {arguments.steps}",
        "recipe": RECIPE,
        "rows": ROWS,
        "versions": versions,
    }
    text = json.dumps(body | measure(arguments.steps), indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
