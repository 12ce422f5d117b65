"""Saves and loads checkpoints: named tensors in slices, whole or refused, in the background, for any layout."""

from sleeptrain.checkpoint.carried import CarriedSlice
from sleeptrain.checkpoint.choose import newest_whole
from sleeptrain.checkpoint.folder import KeepPolicy, best, checkpoints, latest
from sleeptrain.checkpoint.load import (
    Loaded,
    WeightReader,
    load,
    load_carried,
    load_initial_weights,
    load_weights,
    weight_shapes,
)
from sleeptrain.checkpoint.random import random_state, set_random_state
from sleeptrain.checkpoint.save import Saver
from sleeptrain.checkpoint.weights import write_weights

__all__ = [
    "CarriedSlice",
    "KeepPolicy",
    "Loaded",
    "Saver",
    "WeightReader",
    "best",
    "checkpoints",
    "latest",
    "load",
    "load_carried",
    "load_initial_weights",
    "load_weights",
    "newest_whole",
    "random_state",
    "set_random_state",
    "weight_shapes",
    "write_weights",
]
