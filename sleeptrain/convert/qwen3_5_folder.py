"""A Hugging Face folder of the dense Qwen3.5 text model, with or without vision, or an export of sleeptrain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleep_data import manifest as manifests
from sleep_data.tokenize import TOKENIZER
from sleeptrain.convert.export import ORIGIN
from sleeptrain.convert.folder_reading import Described, FolderReading, described, no_grafted_blocks
from sleeptrain.convert.hf_config import read_model, read_sleep, same_shape
from sleeptrain.convert.qwen3_5 import mapped_tensors
from sleeptrain.convert.source import FEEDBACK
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.recipe.recipe import load_recipe
from sleeptrain.run.folder import CONFIG

DROPPED = {
    r"mtp\..*": "multi-token prediction, which sleeptrain has not",
    r"model\.visual\..*": "the vision tower, which sleeptrain has not",
}
"""Tensors of published checkpoints that are left out, and why."""


def read_folder(folder: Path, config: dict[str, Any], layers: str | None) -> FolderReading:
    """What a folder with this config.json says. Raises UserError for what sleeptrain cannot express, and where `layers` is given."""
    config, source = _text_config(config, folder), str(folder / "config.json")
    no_grafted_blocks(layers, source)
    model = read_model(config, source)
    run = _origin(folder, model)
    if run is None:
        run = described(folder, model, read_sleep(config.get("sleep"), len(model.pattern), source))
    recipe, made = run[0].value, dict[str, Callable[[], Tensor]]()
    if recipe.sleep.gated:
        feedback = _feedback(config, recipe.model, folder)
        made[FEEDBACK] = lambda: feedback
    return FolderReading(*run, mapped_tensors(recipe.model), DROPPED, made, prefix="model.language_model.")


def _text_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of the text model; that of a model with vision has it as a section. Raises UserError where it has none."""
    text = config.get("text_config") if config.get("model_type") == "qwen3_5" else config
    if not isinstance(text, dict) or text.get("model_type") != "qwen3_5_text":
        raise UserError(f"{folder / 'config.json'}: text_config is not that of a qwen3_5_text model")
    return {"tie_word_embeddings": config.get("tie_word_embeddings", False), **text}


def _origin(folder: Path, model: Model) -> Described | None:
    """Recipe, manifest and tokenizer that an export of sleeptrain has of its run; None where there are none."""
    origin = folder / ORIGIN
    if not (origin / CONFIG).exists():
        return None
    resolved = load_recipe(str(origin / CONFIG), ["model.residual_scale=1.0", "init_from=null"])
    resolved = dataclasses.replace(resolved, value=dataclasses.replace(resolved.value, run_dir=None))
    if same_shape(resolved.value.model) != same_shape(model):
        raise UserError(
            f"{origin / CONFIG} describes another model than {folder / 'config.json'}; remove {origin} to import without it"
        )
    try:
        return resolved, manifests.read(origin), origin / TOKENIZER
    except ValueError as error:
        raise UserError(f"{error}; or remove {origin} to import without it") from None


def _feedback(config: dict[str, Any], model: Model, folder: Path) -> Tensor:
    """The weight [width] of gated feedback, which config.json has."""
    weight = torch.tensor((config.get("sleep") or {}).get("feedback_weight", []))
    if tuple(weight.shape) != (model.width,):
        raise UserError(
            f"{folder / 'config.json'}: sleep.feedback_weight must have {model.width} numbers, for gated feedback"
        )
    return weight
