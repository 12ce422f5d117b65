"""Small trainings for tests, run in the processes that the caller has started."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from sleep_data.build import build
from sleep_data.tasks import make
from sleeptrain.evaluate.held_out import evaluate_held_out, open_held_out
from sleeptrain.parallel.collectives import on_first_rank
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.recipe import check_batch, complete, load_recipe, open_run
from sleeptrain.recipe.load_trained import initial_weights
from sleeptrain.train.build_model import autograd_forward
from sleeptrain.train.layout import resolve_layout
from sleeptrain.train.log import read_metrics
from sleeptrain.train.loop import train
from sleeptrain.train.setup import open_reader, set_up
from tests.train.gather import full_weights

SMALL = [
    "model.width=32", "model.layers=AG", "model.attention.heads=2", "model.attention.kv_heads=1", "model.attention.head_dim=16",
    "model.deltanet.key_heads=1", "model.deltanet.value_heads=2", "model.deltanet.head_dim=16", "model.mlp.hidden=48",
    "data.row=48",
]  # fmt: skip


def text_data(folder: Path) -> Path:
    """Text data of documents of very different lengths, so that rows have several of them or part of one."""
    source = folder / "documents"
    source.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        words = torch.randint(97, 110, (int(torch.randint(5, 150, (1,), generator=generator)),), generator=generator)
        (source / f"{i}.txt").write_text("".join(map(chr, words.tolist())))
    out = folder / "text"
    build(
        make("text", {"paths": [str(source)], "block": 384, "holdout": 10}),
        out,
        {"train": None, "test": None},
        0,
    )
    return out


def rule110_data(folder: Path, **parameters) -> Path:
    """A small Rule 110 data set; `parameters` override its sizes."""
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8} | parameters
    out = folder / "rule110"
    build(make("rule110", sizes), out, {"train": 512, "test": 64}, 0)
    return out


def recipe_file(folder: Path) -> str:
    """A recipe with the number of steps only; overrides set all other values."""
    path = folder / "recipe.yaml"
    if not path.exists():
        path.write_text("train: {steps: 10}\n")
    return str(path)


def by_autograd(setup) -> None:
    """Replace the forward function of a run by plain autograd."""
    assert callable(setup.context.forward)
    object.__setattr__(setup.context, "forward", autograd_forward(setup.job))


def trained(folder: Path, name: str, data: Path, overrides: list[str], spoil=None, quiet=True):
    """Train or resume the run `name`; returns (rows of metrics, weights by name on rank 0).

    `spoil` modifies the setup before the first step.
    """
    process = init_distributed()
    resolved = load_recipe(
        recipe_file(folder), [*SMALL, f"data.sources=[{{path: {data}}}]", f"run_dir={folder / name}", *overrides]
    )
    axes = init_mesh(resolved.value.mesh, process.rank, process.world)
    batch = check_batch(resolved, process.world)
    reader = open_reader(resolved.value, batch, axes.data.rank)
    held_out = open_held_out(resolved.value, batch, axes.data.rank)
    resolved = complete(resolved, reader.manifest)
    run = on_first_rank(process, lambda: open_run(resolved, name, reader.manifest))
    layout = resolve_layout(resolved.value, reader.manifest.windows, batch, reader.sizes)
    setup = set_up(layout, reader, process, run, {}, initial_weights(resolved, name))
    if spoil is not None:
        spoil(setup)
    train(setup, quiet, None if held_out is None else partial(evaluate_held_out, setup.context, held_out))
    return read_metrics(run / "metrics.jsonl"), full_weights(setup)
