"""How far trainings of `rule110-small` drift apart: compiled runs from eager ones, and eager ones from each other.

Rounding grows from step to step, whatever it comes from. Compiled blocks round elsewhere than eager ones, so their runs are compared
with eager runs of which one initial weight is the next float32. One such distance says little, since the growth is chaotic: every start is
trained eager and compiled, and all pairs of runs are compared. A permutation test says how often a random choice of the runs called
compiled would be as far from the others. All runs read the same rows; eager and compiled ones are trained side by side, each on one thread.

    python -m benchmarks.drift [--steps 200] [--out benchmarks/results/drift.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
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

DISTANCES = ("largest loss", "mean loss", "weights")
"""Largest and mean relative distance of a loss over the steps, and the relative distance of all weights after the last one."""
RECIPE, ROWS, PERMUTATIONS = "rule110-small", 128, 9999
ATTENTION = ("mixer.q", "mixer.k", "mixer.v", "mixer.gate", "mixer.o", "mlp.gate", "mlp.up", "mlp.down")
DELTANET = (
    "mixer.q", "mixer.k", "mixer.v", "mixer.z", "mixer.b", "mixer.a", "mixer.o", "mlp.gate", "mlp.up", "mlp.down",
)  # fmt: skip
STARTS = (
    None, "embed.weight", *(f"layers.0.{name}.weight" for name in ATTENTION), *(f"layers.1.{name}.weight" for name in DELTANET),
)  # fmt: skip
"""The matrix of which one weight is moved; None: all weights as drawn."""


@dataclass(frozen=True)
class Trained:
    """Losses step by step, and the weights after the last step."""

    losses: list[float]
    weights: Mapping[str, Tensor]

    def apart(self, other: Trained) -> list[float]:
        """The DISTANCES from another training; they are the same from the other side."""
        losses = [2 * abs(a - b) / (a + b) for a, b in zip(self.losses, other.losses, strict=True)]
        moved = sum(float((self.weights[n] - w).double().square().sum()) for n, w in other.weights.items())
        norms = sum(float(w.double().square().sum()) for t in (self, other) for w in t.weights.values())
        return [max(losses), sum(losses) / len(losses), math.sqrt(2 * moved / norms)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest value."""
    return {"least": min(values), "median": median(values), "greatest": max(values)}


def further(apart: np.ndarray, compiled: np.ndarray) -> float:
    """How much further pairs of a compiled and an eager run are apart on average than pairs of eager runs.

    `apart`: distances of all pairs of runs, [run, run]; `compiled`: which runs are compiled, [run].
    """
    eager = apart[np.ix_(~compiled, ~compiled)]
    return float(apart[np.ix_(compiled, ~compiled)].mean() - eager[np.triu_indices(len(eager), 1)].mean())


def probability(apart: np.ndarray, compiled: np.ndarray) -> float:
    """The part of PERMUTATIONS random choices of compiled runs, and the true one, for which `further` is as large as for the true one.

    It is the p value of a one-sided permutation test (Phipson and Smyth 2010, arXiv 1603.05766): small if compiled runs are further from
    eager ones than eager ones from each other.
    """
    draws, found = np.random.default_rng(0), further(apart, compiled)
    above = sum(further(apart, draws.permutation(compiled)) >= found for _ in range(PERMUTATIONS))
    return (1 + above) / (1 + PERMUTATIONS)


def compare(eager: Sequence[Trained], compiled: Sequence[Trained]) -> dict[str, Any]:
    """The spread of each distance in each group of pairs, the result of the permutation test, and all pairs.

    A pair is two numbers of runs, of which eager ones come first, and their distances.
    """
    runs, labels = [*eager, *compiled], np.arange(len(eager) + len(compiled)) >= len(eager)
    pairs = list(itertools.combinations(range(len(runs)), 2))
    distances = [runs[one].apart(runs[other]) for one, other in pairs]
    groups = {"eager from eager": 0, "compiled from eager": 1, "compiled from compiled": 2}
    found: dict[str, Any] = {}
    for name, values in zip(DISTANCES, zip(*distances, strict=True), strict=True):
        apart = np.zeros((len(runs), len(runs)))
        for (one, other), value in zip(pairs, values, strict=True):
            apart[one, other] = apart[other, one] = value
        found[name] = {
            group: spread(
                [v for (i, j), v in zip(pairs, values, strict=True) if int(labels[i]) + int(labels[j]) == both]
            )
            for group, both in groups.items()
        }
        found[name] |= {"further": further(apart, labels), "probability": probability(apart, labels)}
    rows = [[i, j, *(float(f"{value:.4g}") for value in each)] for (i, j), each in zip(pairs, distances, strict=True)]
    return found | {"pairs": rows}


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


def train_all(folder: Path, steps: int, compiled: bool) -> list[Trained]:
    """One run from every start, on one thread."""
    torch.set_num_threads(1)
    overrides = [
        f"train.steps={steps}", f"train.batch={ROWS}", "checkpoint.every=0", "eval.every=0", f"train.compile={str(compiled).lower()}",
    ]  # fmt: skip
    runs = [run(folder, f"{compiled}-{i}", overrides, moved) for i, moved in enumerate(STARTS)]
    shutdown_distributed()
    return runs


def measure(steps: int) -> dict[str, Any]:
    """Distances of all pairs of runs, and the first and last loss of the eager run as drawn."""
    with tempfile.TemporaryDirectory() as made, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        folder = Path(made)
        build_task(task_file(RECIPE), folder / "data", {"train": steps * ROWS, "test": 64})
        halves = [pool.submit(train_all, folder, steps, compiled) for compiled in (False, True)]
        eager, compiled = (half.result() for half in halves)
    return {"starts": STARTS, "losses": [eager[0].losses[0], eager[0].losses[-1]]} | compare(eager, compiled)


def as_text(body: dict[str, Any]) -> str:
    """JSON with one line for every pair."""
    pairs = body.pop("pairs")
    head, lines = json.dumps(body, indent=2).removesuffix("\n}"), ",\n    ".join(map(json.dumps, pairs))
    return f'{head},\n  "pairs": [\n    {lines}\n  ]\n}}\n'


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
    text = as_text(body | measure(arguments.steps))
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
