"""Loads a checkpoint into a run of any layout, or its weights into a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.checkpoint.carried import CarriedSlice
from sleeptrain.checkpoint.folder import checkpoints
from sleeptrain.checkpoint.format import (
    CARRIED,
    NO_OPTIMIZER,
    Damaged,
    Index,
    check_files,
    kind_of,
    places_file,
    read_index,
    tensor_file,
)
from sleeptrain.checkpoint.place import Place, common, rectangle
from sleeptrain.checkpoint.save import placed_slices
from sleeptrain.engine.engine import Engine
from sleeptrain.engine.state import MASTER
from sleeptrain.errors import UserError
from sleeptrain.parallel.collectives import on_every_rank, on_first_rank
from sleeptrain.parallel.process import Process


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds besides parameters and moments."""

    step: int
    state: dict[str, Any]
    """What was saved for all ranks together."""
    own_state: dict[str, Any] | None
    """What this rank saved; None if another number of ranks wrote the checkpoint."""


class Parts:
    """The slices of a checkpoint, read as they are asked for."""

    def __init__(self, path: Path, index: Index) -> None:
        """Read the places of all slices. Raises Damaged."""
        self._path = path
        self._files: dict[str, Any] = {}
        self._slices: dict[str, list[tuple[int, Place, dict[str, str]]]] = {}
        self.states = []
        for rank in range(index.processes):
            body = _read_json(path / places_file(rank))
            self.states.append(body["state"])
            for piece in body["slices"]:
                values = piece["place"]
                place = Place(tuple(values["shape"]), tuple(values["columns"]), values["start"], values["count"])
                self._slices.setdefault(piece["tensor"], []).append((rank, place, piece["keys"]))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by name."""
        return {name: slices[0][1].shape for name, slices in self._slices.items() if MASTER in slices[0][2]}

    def read(self, name: str, key: str, place: Place, into: Tensor) -> None:
        """Fill `into` with the values `key` of a slice of a tensor, and padding after it with zeros. Raises Damaged if some are missing."""
        into[place.count :].zero_()
        found = 0
        for rank, source, keys in self._slices.get(name, []):
            parts = list(common(source, place))
            if not parts or key not in keys:
                continue
            values = self._open(tensor_file(rank, kind_of(key))).get_tensor(keys[key])
            for rows, columns, first, second in parts:
                read = rectangle(values, source.width, rows, columns, first)
                rectangle(into, place.width, rows, columns, second).copy_(read)
                found += rows * columns
        if found != place.count:
            raise Damaged(f"{self._path} has {found:,} of {place.count:,} elements of {key} of {name}")

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._files:
            try:
                self._files[file] = safe_open(self._path / file, "pt")
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{self._path / file} cannot be read ({error})") from None
        return self._files[file]


def load(engine: Engine, path: Path, index: Index) -> Loaded:
    """Restore parameters, moments and step count from a checkpoint of any layout; a collective. Rates stay this run's.

    Raises UserError on all ranks where the checkpoint has another optimizer or other parameters than the engine.
    """

    def fill() -> Loaded:
        name = type(engine.optimizer).__name__.lower()
        if index.optimizer == NO_OPTIMIZER:
            raise UserError(
                f"{path} holds weights without moments; start a new run from it: init_from=... and run_dir=..."
            )
        if index.optimizer != name:
            raise UserError(f"{path} was written with optim.name={index.optimizer}, and this run has {name}")
        engine.set_optimizer_step(index.optimizer_step)
        parts = _fill(engine, path, index)
        rank, same = engine.process.rank, index.processes == engine.process.world
        return Loaded(index.step, index.state, parts.states[rank] if same else None)

    loaded = on_every_rank(engine.process, fill)
    engine.use_loaded_state()
    return loaded


def load_initial_weights(engine: Engine, path: Path) -> None:
    """Start from the weights of a checkpoint of another run, without its moments; a collective.

    Raises UserError on all ranks if it is not whole, or has other parameters than the engine.
    """
    process = engine.process
    index = on_first_rank(process, lambda: _index(path))
    on_every_rank(process, lambda: _verify(path, index, (process.rank, process.world)))
    on_every_rank(process, lambda: _fill(engine, path, index))
    engine.use_loaded_state()


def _fill(engine: Engine, path: Path, index: Index) -> Parts:
    """Fill the slices of an engine from a checkpoint. Raises UserError."""
    try:
        parts = Parts(path, index)
        shapes = parts.shapes()
        for piece, place in placed_slices(engine, owned=False):
            if shapes.get(piece.name) != place.shape:
                was = f"has the shape {list(shapes[piece.name])}" if piece.name in shapes else "is missing"
                raise UserError(f"{path}: parameter {piece.name} {was}, and this model has {list(place.shape)}")
            for key, values in piece.values.items():
                parts.read(piece.name, key, place, values)
    except Damaged as error:
        raise UserError(str(error)) from None
    return parts


def load_carried(process: Process, path: Path, index: Index, slices: Sequence[CarriedSlice]) -> None:
    """Fill the state that rows carry from a checkpoint of any layout. A collective; UserError on all ranks if some of it is missing."""

    def fill() -> None:
        try:
            parts = Parts(path, index)
            for piece in slices:
                parts.read(piece.name, CARRIED, piece.place, piece.values)
        except Damaged as error:
            raise UserError(str(error)) from None

    on_every_rank(process, fill)


class WeightReader:
    """The parameters of a checkpoint of any layout, each read when it is asked for. Needs neither DeepSpeed nor a process group."""

    def __init__(self, path: Path) -> None:
        """Verify the files. Raises UserError if `path` is not a checkpoint, or if one of its files is not what was written."""
        self.index = _index(path)
        _verify(path, self.index, (0, 1))
        try:
            self._parts = Parts(path, self.index)
        except Damaged as error:
            raise UserError(str(error)) from None
        self.shapes = self._parts.shapes()
        """The shape of every full parameter, by name."""

    def read(self, name: str) -> Tensor:
        """A full parameter, in fp32 on the CPU. Raises UserError where the checkpoint lacks a part of it."""
        shape = self.shapes[name]
        value = torch.empty(shape)
        width = value.numel() // shape[0] if shape else 1
        try:
            self._parts.read(name, MASTER, Place(shape, (0, width), 0, value.numel()), value.view(-1))
        except Damaged as error:
            raise UserError(str(error)) from None
        return value


def load_weights(path: Path) -> dict[str, Tensor]:
    """Every full parameter by name, in fp32 on the CPU. Raises UserError as `WeightReader` does."""
    reader = WeightReader(path)
    return {name: reader.read(name) for name in reader.shapes}


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every full parameter, by name, without a look at the values. Raises UserError if `path` is not a checkpoint."""
    try:
        return Parts(path, _index(path)).shapes()
    except Damaged as error:
        raise UserError(str(error)) from None


def _index(path: Path) -> Index:
    """The index of a checkpoint. Raises UserError that names others beside it."""
    try:
        return read_index(path)
    except Damaged as error:
        raise UserError(f"{error}; {_others(path)}") from None


def _verify(path: Path, index: Index, share: tuple[int, int]) -> None:
    """Read a share of the files with weights. Raises UserError that names other checkpoints unless they are what was written."""
    try:
        check_files(path, index, weights_only=True, share=share)
    except Damaged as error:
        raise UserError(f"{error}; {_others(path)}") from None


def _others(path: Path) -> str:
    """The checkpoints beside one, as the end of a message."""
    others = [other.name for other in checkpoints(path.parent) if other != path]
    return f"name another checkpoint: {', '.join(others)}" if others else "there is no other checkpoint beside it"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    return body
