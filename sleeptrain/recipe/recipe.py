"""A recipe: the sections of all rooms composed, what data and processes decide, and the run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.config import Problem, Resolved, UserError, load
from sleeptrain.data.manifest import Manifest
from sleeptrain.engine.deepspeed_keys import refused_keys
from sleeptrain.engine.settings import RESERVED_KEYS
from sleeptrain.parallel.config import batch_layout
from sleeptrain.recipe.rules import RULES
from sleeptrain.train.job import Job


@dataclass(frozen=True)
class Recipe(Job):
    """Everything a run is made of."""

    run_dir: str | None = None
    """The run folder; null: runs/<name of the recipe>."""

    def problems(self) -> list[Problem]:
        """What is wrong with the keys of `deepspeed:`, which is no section of ours."""
        return [Problem(f"deepspeed.{path}", why) for path, why in refused_keys(self.deepspeed, RESERVED_KEYS)]


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
    """Raise UserError where the mesh or the batch does not fit `world` processes."""
    train, mesh = resolved.value.train, resolved.value.mesh
    if error := _other_world(resolved, world):
        raise UserError(error)
    data = world // (mesh.pipe * mesh.tensor)
    share = train.batch // data
    if train.batch % data:
        fitting = max(1, round(train.batch / data)) * data
        raise UserError(
            f"{resolved.at('train.batch')}: does not divide over {data} processes; the nearest that does is {fitting}"
        )
    if share % (train.micro or share):
        raise UserError(
            f"{resolved.at('train.micro')}: does not divide the {share} rows of each of {data} processes "
            f"({resolved.at('train.batch')}); choose a divisor of {share}"
        )
    try:
        batch_layout(train.batch, train.micro, mesh, data)
    except ValueError as error:
        fields = ("train.batch", "train.micro", "mesh.group", "mesh.pipe")
        raise UserError(f"{' with '.join(map(resolved.at, fields))}: {str(error).partition(': ')[2]}") from None


def _other_world(resolved: Resolved[Recipe], world: int) -> str | None:
    """Why `world` processes do not fill the mesh, with the nearest numbers that do; None if they do."""
    mesh = resolved.value.mesh
    model = mesh.pipe * mesh.tensor
    below, above = world // model * model, -(-world // model) * model
    wanted = [mesh.data * model] if mesh.data else [n for n in sorted({below, above}) if n]
    if world in wanted:
        return None
    fields = ["mesh.data", *(f"mesh.{axis}" for axis in ("pipe", "tensor") if getattr(mesh, axis) > 1)]
    takes_all = ", or set mesh.data=0 to take all there are" if mesh.data and world % model == 0 else ""
    return (
        f"{' with '.join(map(resolved.at, fields))}: {world} processes were started; start {' or '.join(map(str, wanted))}, "
        f"for instance with torchrun --nproc_per_node {wanted[0]} -m sleeptrain train ...{takes_all}"
    )


def _misfits(resolved: Resolved[Recipe], manifest: Manifest) -> Iterator[str]:
    model, sleep, mesh = resolved.value.model, resolved.value.sleep, resolved.value.mesh
    data = ", ".join(source.path for source in resolved.value.data.sources)
    if model.vocab is not None and model.vocab < manifest.vocab:
        yield f"{resolved.at('model.vocab')}: the data in {data} has {manifest.vocab} tokens; raise it, or set null to take theirs"
    lengths = [w.stop - w.start for w in manifest.windows]
    longest, sizes = max(lengths), ", ".join(map(str, sorted(set(lengths))))
    if longest > sleep.window:
        yield f"{resolved.at('sleep.window')}: the data in {data} comes in windows of {longest} tokens; set sleep.window={longest}"
    elif sleep.window > manifest.length:
        yield (
            f"{resolved.at('sleep.window')}: whole samples of {data} have {manifest.length} tokens, in windows of up to {longest}; "
            f"set sleep.window={longest}"
        )
    elif sleep.evict.mode == "sliding" and any(length != sleep.window for length in lengths[:-1]):
        yield (
            f"{resolved.at('sleep.window')} with {resolved.at('sleep.evict.mode')}: sliding eviction needs windows of exactly that "
            f"many tokens, and those in {data} have {sizes}; set sleep.evict.mode=hard"
            + ("" if lengths[:-1] != [longest] * (len(lengths) - 1) else f", or sleep.window={longest}")
        )
    if mesh.sequence and (odd := sorted({length for length in lengths if length % mesh.tensor})):
        yield (
            f"{resolved.at('mesh.sequence')} with {resolved.at('mesh.tensor')}: {mesh.tensor} processes cannot share windows of "
            f"{' and '.join(map(str, odd))} tokens, as in {data}; build windows of a multiple, or set mesh.sequence=false"
        )
    if sleep.loop.trigger == "context" and sleep.max_passes > 1 and all(w.targets for w in manifest.windows):
        yield (
            f"{resolved.at('sleep.loop.trigger')}: every window of {data} has targets, so none would sleep and passes = "
            f"{sleep.max_passes} would change nothing; set sleep.loop.trigger=every, or sleep.passes=1"
        )
    if sleep.loop.trigger == "every" and sleep.max_passes > 1 and len(lengths) == 1:
        yield (
            f"{resolved.at('sleep.loop.trigger')}: samples of {data} are one window, and the last window of a sample never sleeps, so "
            f"that passes = {sleep.max_passes} would change nothing; build data with several windows a sample, or set sleep.passes=1"
        )


FREE_TO_CHANGE = ("run_dir", "train.steps", "train.tokens", "checkpoint.", "log.", "data.workers")
"""What may differ between a run and its continuation."""


def open_run(resolved: Resolved[Recipe], name: str, manifest: Manifest) -> Path:
    """The run folder, made if it is new: configuration, the data's manifest, the code's version and the environment.

    Raises UserError where the folder holds a run of another configuration or on other data, or cannot be written.
    """
    folder = run_folder(resolved.value, name)
    try:
        check_run(resolved, folder, manifest)
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


def check_run(resolved: Resolved[Recipe], folder: Path, manifest: Manifest | None = None) -> None:
    """Raise UserError if `folder` holds a run of another configuration, or of other data than `manifest` describes."""
    if _begun(folder) and (changed := _changes(resolved, folder / "config.yaml")):
        way_out = "take the old values to continue it, or start another run with run_dir=..."
        raise UserError([f"{folder} holds a run of another configuration; {way_out}", *changed])
    if manifest and checkpoint.latest(folder / "checkpoints") and _other_data(folder / "manifest.json", manifest):
        paths = ", ".join(source.path for source in resolved.value.data.sources)
        raise UserError(
            f"{folder} was trained on other data than {paths} holds now; bring the old data back to continue it, or start "
            "another run with run_dir=..."
        )


def _begun(folder: Path) -> bool:
    """Whether a run in `folder` has made a step."""
    metrics = folder / "metrics.jsonl"
    begun = checkpoint.latest(folder / "checkpoints") is not None or (metrics.exists() and metrics.stat().st_size > 0)
    return begun and (folder / "config.yaml").exists()


def _other_data(known: Path, manifest: Manifest) -> bool:
    return known.exists() and json.loads(known.read_text())["hash"] != manifest.body["hash"]


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
