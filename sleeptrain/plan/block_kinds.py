"""Kinds of blocks whose memory differs: by letter of the pattern, and by which of their weights are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.stack import Block
from sleeptrain.model.trained import TrainedWeights, freeze


@dataclass(frozen=True)
class BlockKind:
    """What the memory of a block depends on."""

    letter: str
    """Of the pattern."""
    trained: frozenset[str] | None = None
    """The names of its trained weights in it; None: all."""
    differentiated: bool = True
    """Whether its features have a gradient."""


def block_kinds(model: Model, trained: TrainedWeights) -> tuple[BlockKind, ...]:
    """The kind of every block of a stack."""
    return tuple(
        BlockKind(letter, trained.of_block(layer), layer >= trained.first_block)
        for layer, letter in enumerate(model.pattern)
    )


def freeze_kinds(small: LanguageModel, kinds: Sequence[BlockKind], trained: TrainedWeights) -> None:
    """Freeze the weights of a model of one block of each kind, as `trained.freeze` does those of the whole model."""
    names = {
        f"layers.{layer}.{name}"
        for layer, kind in enumerate(kinds)
        for name, _ in small.layers[layer].named_parameters()
        if kind.trained is None or name in kind.trained
    }
    names |= {name for name in ("embed.weight", "norm.weight", "head.weight") if name in trained}
    freeze(small, TrainedWeights(None if trained.names is None else frozenset(names)))
    for kind, block in zip(kinds, small.layers, strict=True):
        if trained.names is not None and isinstance(block, Block):
            block.differentiated = kind.differentiated
