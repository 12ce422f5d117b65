"""Writes a checkpoint of weights alone, from which a run starts (`init_from`) and which evaluation and sessions read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sleeptrain.checkpoint.folder import commit, staging_folder
from sleeptrain.checkpoint.format import (
    NO_OPTIMIZER,
    Index,
    TensorLayout,
    places_file,
    stream_tensors,
    tensor_file,
    write_index,
    write_json,
)
from sleeptrain.checkpoint.place import place_of_part
from sleeptrain.engine.state import MASTER


def write_weights(
    folder: Path, step: int, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor],
    eval_loss: float | None = None,
) -> Path:  # fmt: skip
    """Write the checkpoint of a step into a folder of checkpoints; returns its path. One parameter is in memory at a time.

    `read` returns the parameter of a name with its shape in `shapes`, on the CPU; fp32 is written.
    """
    staging, values, places = staging_folder(folder, step), tensor_file(0, "weights"), places_file(0)
    staging.mkdir(parents=True)
    keys = {name: f"{name}/{MASTER}" for name in shapes}
    slices = [
        {
            "tensor": name,
            "place": asdict(place_of_part(shape, None, 0, shape, 0, prod(shape))),
            "keys": {MASTER: keys[name]},
        }
        for name, shape in shapes.items()
    ]
    layouts = {keys[name]: TensorLayout(torch.float32, (prod(shape),)) for name, shape in shapes.items()}
    files = {
        values: stream_tensors(staging / values, layouts, (read(name).detach().float().reshape(-1) for name in shapes)),
        places: write_json(staging / places, {"slices": slices, "state": {}}),
    }
    write_index(staging, Index(step, 1, NO_OPTIMIZER, 0, {}, files, eval_loss))
    return commit(folder, step)
