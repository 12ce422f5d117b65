"""The state that rows carry from step to step, in a checkpoint: one tensor for every row and leaf, in slices like the parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sleeptrain.checkpoint.place import Place


@dataclass(frozen=True)
class CarriedSlice:
    """What one rank has of one tensor."""

    name: str
    """Of the tensor; equal on all ranks that have a slice of it."""
    place: Place
    values: Tensor
    """Vector, float32; filled by `load_carried`."""
    owned: bool
    """Whether this rank is the one that writes it."""
