"""Checkpoints of given weights, written without a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from sleeptrain.checkpoint import format
from sleeptrain.checkpoint.folder import step_folder
from sleeptrain.checkpoint.place import place_of_part


def write_weights(folder: Path, step: int, weights: Mapping[str, Tensor], eval_loss: float | None = None) -> Path:
    """Write the checkpoint of a step with these weights, as one rank before its first optimizer step does."""
    path = step_folder(folder, step)
    path.mkdir(parents=True, exist_ok=True)
    values, json = format.tensor_file(0, "weights"), format.places_file(0)
    tensors = {f"{key}/master": weight.detach().float().reshape(-1).clone() for key, weight in weights.items()}
    places = {key: place_of_part(tuple(w.shape), None, 0, tuple(w.shape), 0, w.numel()) for key, w in weights.items()}
    slices = [
        {"tensor": key, "place": asdict(place), "keys": {"master": f"{key}/master"}} for key, place in places.items()
    ]
    files = {
        values: format.write_tensors(path / values, tensors),
        json: format.write_json(path / json, {"slices": slices, "state": {}}),
    }
    format.write_index(path, format.Index(step, 1, "adamw", 0, {}, files, eval_loss))
    return path
