"""A trained model out of its run folder, to evaluate, continue or convert."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sleeptrain import checkpoint
from sleeptrain.config import UserError
from sleeptrain.data.manifest import Manifest
from sleeptrain.model.language import LanguageModel
from sleeptrain.recipe.recipe import Recipe, load_recipe


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
