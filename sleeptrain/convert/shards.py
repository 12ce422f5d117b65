"""Safetensors shards of a model with their index: which tensor goes into which file, and writing them one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sleeptrain.checkpoint.format import TensorLayout, stream_tensors

INDEX = "model.safetensors.index.json"

Sink = Callable[[str, Mapping[str, TensorLayout], Iterable[Tensor]], Any]
"""Takes a file's name, the layouts of its tensors, and the tensors one at a time in that order."""


def plan_shards(layouts: Mapping[str, TensorLayout], limit: int) -> dict[str, dict[str, TensorLayout]]:
    """The tensors of every file by its name, in order. A file has at most `limit` bytes of values, or a single tensor."""
    shards: list[dict[str, TensorLayout]] = []
    size = limit
    for name, layout in layouts.items():
        if size + layout.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = layout
        size += layout.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_shards(shards: Mapping[str, Mapping[str, TensorLayout]], make: Callable[[str], Tensor], sink: Sink) -> None:
    """Give every file to `sink`. `make` returns the tensor of a name, and no two tensors are in memory at a time."""
    for file, layouts in shards.items():
        sink(file, layouts, map(make, layouts))


def folder_sink(folder: Path) -> Sink:
    """A sink that writes the files into a folder, each flushed to the disk."""
    return lambda file, layouts, tensors: stream_tensors(folder / file, layouts, tensors)


def index_json(shards: Mapping[str, Mapping[str, TensorLayout]]) -> str:
    """The content of the index of several files: the bytes of all values, and the file of every tensor."""
    total = sum(layout.nbytes for layouts in shards.values() for layout in layouts.values())
    weight_map = {name: file for file, layouts in shards.items() for name in layouts}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
