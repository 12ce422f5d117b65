"""A recipe: the sections of all rooms composed, the rules between them, and the run folder."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sleeptrain import checkpoint
from sleeptrain.config import Resolved, Rule, UserError, load
from sleeptrain.data.manifest import Manifest
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.config import undivided, unstaged
from sleeptrain.program import loop_range
from sleeptrain.train.job import Job


@dataclass(frozen=True)
class Recipe(Job):
    """Everything a run is made of."""

    run_dir: str | None = None
    """The run folder; null: runs/<name of the recipe>."""


def _range_outside(r: Recipe) -> bool:
    return r.sleep.loop.layers != "all" and r.sleep.loop.layers[1] > len(r.model.pattern)


def _normed_below_a_coda(r: Recipe) -> bool:
    return r.sleep.loop.feedback == "normed" and loop_range(r.sleep, len(r.model.pattern))[1] < len(r.model.pattern)


RULES: tuple[Rule[Recipe], ...] = (
    Rule(
        "loop-range", ("sleep.loop.layers", "model.layers"), _range_outside,
        lambda r: f"the stack has {len(r.model.pattern)} blocks",
        "let the range end at or below the number of blocks in model.layers",
    ),
    Rule(
        "normed-coda", ("sleep.loop.feedback", "sleep.loop.layers"), _normed_below_a_coda,
        lambda r: "features through the final norm are only there where no block follows the looped range",
        "use sleep.loop.feedback=raw, or let the range end at the last block",
    ),
    Rule(
        "micro-batch", ("train.micro", "train.batch"),
        lambda r: r.train.micro is not None and r.train.batch % r.train.micro != 0,
        lambda r: f"train.batch = {r.train.batch} is no multiple of train.micro = {r.train.micro}",
        "choose a micro-batch that divides the batch",
    ),
    Rule(
        "batch-over-data", ("train.batch", "mesh.data"),
        lambda r: r.mesh.data > 0 and r.train.batch % (r.mesh.data * (r.train.micro or 1)) != 0,
        lambda r: f"train.batch = {r.train.batch} rows do not divide over mesh.data = {r.mesh.data} x micro-batches of {r.train.micro or 'any size'}",
        "make train.batch a multiple of mesh.data x train.micro",
    ),
    Rule(
        "tensor-heads", ("mesh.tensor",),
        lambda r: undivided(r.model, r.mesh.tensor) is not None,
        lambda r: str(undivided(r.model, r.mesh.tensor)),
        "choose one of these, or other sizes of the model",
    ),
    Rule(
        "pipe-layers", ("mesh.pipe", "model.layers"),
        lambda r: unstaged(r.model, r.sleep, r.mesh) is not None,
        lambda r: str(unstaged(r.model, r.sleep, r.mesh)),
        "choose another number of stages",
    ),
    Rule(
        "muon-tensor", ("optim.name", "mesh.tensor"),
        lambda r: r.optim.name == "muon" and r.mesh.tensor > 1,
        "tensor parallelism cuts matrices, and Muon orthogonalises whole ones",
        "use optim.name=adamw, or mesh.tensor=1",
    ),
)  # fmt: skip


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Resolved[Recipe]:
    """Read a recipe, its includes and the command line; UserError lists every error at once."""
    return load(name, list(overrides), Recipe, rules=RULES)


def complete(resolved: Resolved[Recipe], manifest: Manifest) -> Resolved[Recipe]:
    """Fill in what the data decides: `model.vocab` and `model.deltanet.horizon`.

    Raises UserError where recipe and data do not fit: vocabulary, window length, a trigger that would never sleep.
    """
    recipe = resolved.value
    if errors := list(_misfits(resolved, manifest)):
        raise UserError(errors)
    model = recipe.model
    horizon = model.deltanet.horizon or 2 * recipe.sleep.max_passes * manifest.length
    deltanet = dataclasses.replace(model.deltanet, horizon=horizon)
    model = dataclasses.replace(model, vocab=model.vocab or manifest.vocab, deltanet=deltanet)
    derived = {"model.vocab": recipe.model.vocab, "model.deltanet.horizon": recipe.model.deltanet.horizon}
    places = resolved.places | {path: "derived from the data" for path, given in derived.items() if given is None}
    return dataclasses.replace(resolved, value=dataclasses.replace(recipe, model=model), places=places)


def _misfits(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    model, sleep = resolved.value.model, resolved.value.sleep
    data = ", ".join(source.path for source in resolved.value.data.sources)
    if model.vocab is not None and model.vocab < manifest.vocab:
        yield f"{resolved.at('model.vocab')}: the data in {data} has {manifest.vocab} tokens; raise it, or set null to take theirs"
    longest = max(w.stop - w.start for w in manifest.windows)
    if longest > sleep.window:
        yield f"{resolved.at('sleep.window')}: the data in {data} comes in windows of {longest} tokens; set sleep.window={longest}"
    elif sleep.evict.mode == "sliding" and any(w.stop - w.start != sleep.window for w in manifest.windows[:-1]):
        yield f"{resolved.at('sleep.window')}: sliding eviction needs windows of exactly that many tokens, and those in {data} have {longest}"
    if sleep.loop.trigger == "context" and sleep.max_passes > 1 and all(w.targets for w in manifest.windows):
        yield (
            f"{resolved.at('sleep.loop.trigger')}: every window of {data} has targets, so none would sleep and passes = "
            f"{sleep.max_passes} would change nothing; set sleep.loop.trigger=every, or sleep.passes=1"
        )


FREE_TO_CHANGE = ("run_dir", "train.steps", "train.tokens", "checkpoint.", "log.", "data.workers")
"""What may differ between a run and its continuation."""


def open_run(resolved: Resolved[Recipe], name: str, manifest: Manifest) -> Path:
    """The run folder, made if it is new: configuration, the data's manifest, the code's version and the environment.

    Raises UserError where the folder holds a run of another configuration.
    """
    folder = run_folder(resolved.value, name)
    known = folder / "config.yaml"
    if known.exists():
        before = {path: value for path, value, _ in load_recipe(str(known)).rows()}
        now = {path: value for path, value, _ in resolved.rows()}
        paths = sorted(p for p in before.keys() | now.keys() if not p.startswith(FREE_TO_CHANGE))
        changed = [f"{p} = {now.get(p)!r}, was {before.get(p)!r}" for p in paths if before.get(p) != now.get(p)]
        if changed:
            way_out = "take the old values to continue it, or start another run with run_dir=..."
            raise UserError([f"{folder} holds a run of another configuration; {way_out}", *changed])
    folder.mkdir(parents=True, exist_ok=True)
    _write(known, resolved.to_yaml())
    _write(folder / "manifest.json", json.dumps(manifest.body, indent=1, sort_keys=True))
    _write(folder / "environment.json", json.dumps(environment(), indent=2))
    return folder


def run_folder(recipe: Recipe, name: str) -> Path:
    """Where a recipe's run goes."""
    return Path(recipe.run_dir or Path("runs") / Path(name).stem)


@dataclass(frozen=True)
class Trained:
    """A model out of a run or a checkpoint, with what it was trained on."""

    recipe: Recipe
    model: LanguageModel
    manifest: Manifest
    step: int
    run: Path
    """The run folder."""


def open_trained(path: str | Path, overrides: Sequence[str] = ()) -> Trained:
    """The model of a run folder (its newest checkpoint) or of one checkpoint in it, in float32 on this machine's device.

    Raises UserError where there is no such run, nothing was saved yet, or the weights do not fit the configuration.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist; give a run folder, such as runs/demo/rule110-n4, or a checkpoint in one"
        )
    run = path if (path / "config.yaml").exists() and (path / "manifest.json").exists() else path.parent.parent
    if not (run / "config.yaml").exists():
        raise UserError(f"{path} is neither a run folder nor a checkpoint of one: there is no config.yaml")
    chosen = checkpoint.latest(run / "checkpoints") if run == path else path
    if chosen is None:
        raise UserError(f"{run} has no checkpoint yet; train it first: sleeptrain train {run / 'config.yaml'}")
    recipe = load_recipe(str(run / "config.yaml"), overrides).value
    model = LanguageModel(recipe.model)
    weights = checkpoint.load_weights(chosen)
    odd = sorted(weights.keys() ^ dict(model.named_parameters()).keys())
    if odd:
        raise UserError(f"{chosen} does not fit {run / 'config.yaml'}: parameter {odd[0]} is in one of them only")
    model.load_state_dict(weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    manifest = Manifest.from_json(json.loads((run / "manifest.json").read_text()))
    return Trained(recipe, model.to(device).eval(), manifest, int(chosen.name.rsplit("-", 1)[-1]), run)


def environment() -> dict[str, Any]:
    """Versions of what a result depends on, and of the code itself."""
    names = (
        "sleeptrain",
        "torch",
        "deepspeed",
        "megatron-core",
        "triton",
        "mosaicml-streaming",
        "wandb",
        "omegaconf",
        "numpy",
    )
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(), "machine": platform.platform(), "processor": platform.processor() or platform.machine(),
        "versions": versions, "code": git.stdout.strip() or versions["sleeptrain"],
    }  # fmt: skip


def _write(path: Path, text: str) -> None:
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text)
    staged.replace(path)
