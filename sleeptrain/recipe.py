"""A recipe: the sections of all rooms composed, the rules between them, and the run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
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
from sleeptrain.parallel.config import data_size, undivided, unstaged
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
        "normed-coda", ("sleep.loop.feedback", "sleep.loop.layers", "model.layers"), _normed_below_a_coda,
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
        "batch-over-data", ("train.batch", "mesh.data", "train.micro"),
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


def check_processes(resolved: Resolved[Recipe], world: int) -> None:
    """Raise UserError where the batch or the mesh does not fit `world` processes."""
    train, mesh = resolved.value.train, resolved.value.mesh
    errors, model = [], mesh.pipe * mesh.tensor
    try:
        data = data_size(mesh, world)
    except ValueError:
        data, wanted = max(1, world // model), max(1, mesh.data) * model
        errors.append(
            f"{resolved.at('mesh.data')}: {world} processes were started; start {wanted}, for instance with "
            f"torchrun --nproc_per_node {wanted} -m sleeptrain train ..., or set mesh.data=0 to take all there are"
        )
    share = train.batch // data
    if train.batch % data:
        fitting = max(1, round(train.batch / data)) * data
        errors.append(
            f"{resolved.at('train.batch')}: does not divide over {data} processes; the nearest that does is {fitting}"
        )
    elif share % (train.micro or share):
        errors.append(
            f"{resolved.at('train.micro')}: does not divide the {share} rows of each of {data} processes "
            f"({resolved.at('train.batch')}); choose a divisor of {share}"
        )
    if errors:
        raise UserError(errors)


def _misfits(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    model, sleep = resolved.value.model, resolved.value.sleep
    data = ", ".join(source.path for source in resolved.value.data.sources)
    if model.vocab is not None and model.vocab < manifest.vocab:
        yield f"{resolved.at('model.vocab')}: the data in {data} has {manifest.vocab} tokens; raise it, or set null to take theirs"
    lengths = [w.stop - w.start for w in manifest.windows]
    longest, sizes = max(lengths), ", ".join(map(str, sorted(set(lengths))))
    if longest > sleep.window:
        yield f"{resolved.at('sleep.window')}: the data in {data} comes in windows of {longest} tokens; set sleep.window={longest}"
    elif sleep.evict.mode == "sliding" and any(length != sleep.window for length in lengths[:-1]):
        yield (
            f"{resolved.at('sleep.window')} with {resolved.at('sleep.evict.mode')}: sliding eviction needs windows of exactly that "
            f"many tokens, and those in {data} have {sizes}; set sleep.evict.mode=hard"
            + ("" if lengths[:-1] != [longest] * (len(lengths) - 1) else f", or sleep.window={longest}")
        )
    if sleep.loop.trigger == "context" and sleep.max_passes > 1 and all(w.targets for w in manifest.windows):
        yield (
            f"{resolved.at('sleep.loop.trigger')}: every window of {data} has targets, so none would sleep and passes = "
            f"{sleep.max_passes} would change nothing; set sleep.loop.trigger=every, or sleep.passes=1"
        )


FREE_TO_CHANGE = ("run_dir", "train.steps", "train.tokens", "checkpoint.", "log.", "data.workers")
"""What may differ between a run and its continuation."""


def open_run(resolved: Resolved[Recipe], name: str, manifest: Manifest) -> Path:
    """The run folder, made if it is new: configuration, the data's manifest, the code's version and the environment.

    Raises UserError where the folder holds a run of another configuration, or cannot be written.
    """
    folder = run_folder(resolved.value, name)
    try:
        check_run(resolved, folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.yaml", resolved.to_yaml())
        _write(folder / "manifest.json", json.dumps(manifest.body, indent=1, sort_keys=True))
        _write(folder / "environment.json", json.dumps(environment(), indent=2))
    except OSError as error:
        raise UserError(
            f"{resolved.at('run_dir')}: {folder} cannot be written ({error.strerror}: {error.filename}); "
            "name another folder with run_dir=..."
        ) from None
    return folder


def check_run(resolved: Resolved[Recipe], folder: Path) -> None:
    """Raise UserError if `folder` holds a run of another configuration."""
    if (folder / "config.yaml").exists() and (changed := _changes(resolved, folder / "config.yaml")):
        way_out = "take the old values to continue it, or start another run with run_dir=..."
        raise UserError([f"{folder} holds a run of another configuration; {way_out}", *changed])


def _changes(resolved: Resolved[Recipe], known: Path) -> list[str]:
    """What differs from the configuration in the file `known` and may not."""
    before = {path: value for path, value, _ in load_recipe(str(known)).rows()}
    now = {path: value for path, value, _ in resolved.rows()}
    found = []
    for path in [*now, *(path for path in before if path not in now)]:
        value, was = now.get(path), before.get(path)
        # A section without keys is a leaf of its own, and says nothing that its missing keys do not say.
        if path.startswith(FREE_TO_CHANGE) or value == was or {} in (value, was):
            continue
        here = resolved.at(path) if path in now else f"{path} is not given"
        found.append(f"{here}, was {json.dumps(was)}" if path in before else f"{here}, was not given")
    return found


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
    run, chosen = _find_checkpoint(Path(path))
    recipe = load_recipe(str(run / "config.yaml"), overrides).value
    try:
        manifest = Manifest.from_json(json.loads((run / "manifest.json").read_text()))
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{run / 'manifest.json'} cannot be read ({error}); copy the run folder again") from None
    model = _with_weights(LanguageModel(recipe.model), chosen, run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Trained(recipe, model.to(device).eval(), manifest, int(chosen.name.rsplit("-", 1)[-1]), run)


def _find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a path means."""
    wanted = "give a run folder, such as runs/rule110-tiny, or a checkpoint in one"
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {wanted}")
    if (path / "config.yaml").exists() and (path / "manifest.json").exists():
        newest = checkpoint.latest(path / "checkpoints")
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet; train it first: sleeptrain train {path / 'config.yaml'}")
        return path, newest
    run = path.resolve().parent.parent
    if not (run / "config.yaml").exists() or not re.fullmatch(r"step-\d+", path.resolve().name):
        raise UserError(f"{path} is neither a run folder nor a checkpoint of one; {wanted}")
    return path.parent.parent, path


def _with_weights(model: LanguageModel, chosen: Path, run: Path) -> LanguageModel:
    """The model with the weights of a checkpoint."""
    try:
        weights = checkpoint.load_weights(chosen)
    except UserError:
        raise
    except Exception as error:  # safetensors has its own kinds
        raise UserError(
            f"{chosen / 'model.safetensors'} is damaged ({error}); name another checkpoint of {run / 'checkpoints'}"
        ) from None
    wanted = dict(model.named_parameters())
    for name in sorted(weights.keys() | wanted.keys()):
        if name not in weights or name not in wanted:
            raise UserError(f"{chosen} does not fit {run / 'config.yaml'}: parameter {name} is in one of them only")
        if weights[name].shape != wanted[name].shape:
            shapes = f"{list(weights[name].shape)} there and {list(wanted[name].shape)} by the configuration"
            raise UserError(f"{chosen} does not fit {run / 'config.yaml'}: parameter {name} is {shapes}")
    model.load_state_dict(weights)
    return model


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
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
        "code": git.stdout.strip() or versions["sleeptrain"],
    }


def _write(path: Path, text: str) -> None:
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text)
    staged.replace(path)
