"""Saves and loads checkpoints: engine state, weights and random generator states."""

from sleeptrain.checkpoint.folder import latest, load, load_weights, save
from sleeptrain.checkpoint.random import random_state, set_random_state

__all__ = ["latest", "load", "load_weights", "random_state", "save", "set_random_state"]
