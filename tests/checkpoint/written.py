"""Checkpoints of given weights, written without a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sleeptrain import checkpoint


def write_weights(folder: Path, step: int, weights: Mapping[str, Tensor], eval_loss: float | None = None) -> Path:
    """Write the checkpoint of a step with these weights."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return checkpoint.write_weights(folder, step, shapes, weights.__getitem__, eval_loss)
