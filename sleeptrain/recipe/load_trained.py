"""Loading of a trained model from its run folder, for evaluation, generation and conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sleeptrain import checkpoint
from sleeptrain.config import Resolved
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.model.language import LanguageModel
from sleeptrain.recipe.recipe import Recipe, load_recipe
from sleeptrain.run.folder import CHECKPOINTS, has_checkpoint, runs_of_seeds

BEST = "best"
"""A name in the folder of checkpoints for the one with the lowest loss on held-out data; no folder of this name exists."""


@dataclass(frozen=True)
class Trained:
    """A model loaded from a run or a checkpoint, with its recipe and the manifest of its data."""

    recipe: Recipe
    model: LanguageModel
    manifest: Manifest
    step: int
    run: Path
    """The run folder."""


@dataclass(frozen=True)
class RunFiles:
    """What describes a trained model: its recipe, the manifest of its data, and which checkpoint has its weights."""

    run: Path
    """The run folder."""
    checkpoint: Path
    """The folder of the checkpoint."""
    resolved: Resolved[Recipe]
    manifest: Manifest

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return int(self.checkpoint.name.rsplit("-", 1)[-1])


def open_trained(path: str | Path, overrides: Sequence[str] = (), *, as_trained: bool = False) -> Trained:
    """Load the newest checkpoint of a run folder, or one checkpoint in it, on the GPU if there is one.

    Weights are float32, or with `as_trained` of the dtype that training computed with (`train.precision`). Raises UserError if the run does not exist, has no checkpoint, or the weights do not fit its configuration.
    """
    opened = open_run_files(Path(path), overrides)
    recipe, folder, run = opened.resolved.value, opened.checkpoint, opened.run
    model = _load_weights(LanguageModel(recipe.model, gated=recipe.sleep.gated, seed=None), folder, run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if as_trained and recipe.train.precision == "bf16" else torch.float32
    return Trained(recipe, model.to(device, dtype).eval(), opened.manifest, opened.step, run)


def open_run_files(path: Path, overrides: Sequence[str] = ()) -> RunFiles:
    """A run folder with its newest checkpoint, or one checkpoint in a run, without its weights. Raises UserError as `open_trained`."""
    run, folder = find_checkpoint(path)
    resolved = load_recipe(str(run / "config.yaml"), overrides)
    recipe = resolved.value
    try:
        manifest = Manifest.from_json(json.loads((run / "manifest.json").read_text()))
        manifest = manifest.cut(recipe.sleep.window, recipe.data.row)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{run / 'manifest.json'} cannot be read ({error}); copy the run folder again") from None
    return RunFiles(run, folder, resolved, manifest)


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint folder that `path` names: a run folder its newest checkpoint, `RUN/checkpoints/best` its best one."""
    hint = "give a run folder, such as runs/rule110-tiny, or a checkpoint in one"
    if path.name == BEST and path.parent.name == CHECKPOINTS and path.parent.is_dir():
        return path.parent.parent, _best(path)
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {hint}")
    if (path / "config.yaml").exists() and (path / "manifest.json").exists():
        newest = checkpoint.latest(path / "checkpoints")
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet; train it first: sleeptrain train {path / 'config.yaml'}")
        return path, newest
    if (seeds := runs_of_seeds(path)) != [str(path)]:
        raise UserError(f"{path} holds several runs; name one of {', '.join(seeds)}")
    run = path.resolve().parent.parent
    if not (run / "config.yaml").exists() or not re.fullmatch(r"step-\d+", path.resolve().name):
        raise UserError(f"{path} is neither a run folder nor a checkpoint of one; {hint}")
    return path.parent.parent, path


def _best(path: Path) -> Path:
    """The checkpoint that `RUN/checkpoints/best` names."""
    found = checkpoint.best(path.parent)
    if found is None:
        raise UserError(
            f"{path}: no checkpoint there was evaluated; train with eval.every, and checkpoint.every a multiple of it, "
            f"or give a checkpoint: {', '.join(each.name for each in checkpoint.checkpoints(path.parent)) or 'there is none yet'}"
        )
    return found[0]


def initial_weights(resolved: Resolved[Recipe], name: str) -> Path | None:
    """The checkpoint that a new run starts from, as `init_from` says; None if it says nothing, or the run has one of its own.

    Raises UserError where it does not fit the recipe, which was loaded as `name`.
    """
    recipe = resolved.value
    if recipe.init_from is None or has_checkpoint(recipe.folder(name)):
        return None
    try:
        folder = find_checkpoint(Path(recipe.init_from))[1]
        check_fit(checkpoint.weight_shapes(folder), parameter_shapes(recipe), folder, "the configuration")
    except UserError as error:
        raise UserError([f"{resolved.at('init_from')}: {line}" for line in error.errors]) from None
    return folder


def _load_weights(model: LanguageModel, folder: Path, run: Path) -> LanguageModel:
    """Load the weights of the checkpoint in `folder` into `model`, after a comparison of names and shapes."""
    weights = checkpoint.load_weights(folder)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_fit({name: tuple(w.shape) for name, w in weights.items()}, expected, folder, str(run / "config.yaml"))
    model.load_state_dict(weights)
    return model


def parameter_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a recipe's model, by name."""
    with torch.device("meta"):
        model = LanguageModel(recipe.model, gated=recipe.sleep.gated, seed=None)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


Shapes = Mapping[str, tuple[int, ...]]


def check_fit(shapes: Shapes, expected: Shapes, folder: Path, config: str) -> None:
    """Raise UserError unless the weights in `folder` have the names and shapes of the model that `config` describes."""
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes or name not in expected:
            raise UserError(f"{folder} does not fit {config}: parameter {name} is in one of them only")
        if shapes[name] != expected[name]:
            raise UserError(
                f"{folder} does not fit {config}: the shape of parameter {name} is {list(shapes[name])} in the checkpoint and "
                f"{list(expected[name])} in the configuration"
            )
