"""Which weights are trained: patterns over the names of weights and modules, and the block down to which gradients are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from sleeptrain.config.names import nearest
from sleeptrain.model.config import Model
from sleeptrain.program import Sleep, loop_range

if TYPE_CHECKING:
    from torch import Tensor

    from sleeptrain.model.language import LanguageModel

EXCEPT = "!"
"""The first character of a pattern of weights that are not trained."""


@dataclass(frozen=True)
class TrainedWeights:
    """The weights that are trained. All others are frozen."""

    names: frozenset[str] | None = None
    """None: all."""
    first_block: int = 0
    """The blocks below hold no trained weight, and nothing that they read depends on one: no gradient is computed for them."""

    def __contains__(self, name: str) -> bool:
        return self.names is None or name in self.names

    def of_block(self, layer: int) -> frozenset[str] | None:
        """The trained weights of a block by their names in it, such as `mixer.q.weight`; None: all."""
        if self.names is None:
            return None
        prefix = f"layers.{layer}."
        return frozenset(name.removeprefix(prefix) for name in self.names if name.startswith(prefix))


ALL_TRAINED = TrainedWeights()


@lru_cache(maxsize=32)
def select(patterns: tuple[str, ...], config: Model, gated: bool) -> frozenset[str]:
    """The names of the weights of a model that patterns choose; those with `EXCEPT` alone choose all others."""
    names, letters = weights_of(config, gated), config.pattern
    chosen = [pattern for pattern in patterns if not pattern.startswith(EXCEPT)] or ["*"]
    left = [pattern.removeprefix(EXCEPT) for pattern in patterns if pattern.startswith(EXCEPT)]
    return frozenset(n for n in names if _matches(n, chosen, letters) and not _matches(n, left, letters))


@lru_cache(maxsize=32)
def selection_problem(patterns: tuple[str, ...], config: Model, gated: bool) -> str | None:
    """What is wrong with patterns for a model: one that no weight matches, or none that is trained; None if nothing is."""
    names, letters = weights_of(config, gated), config.pattern
    known = {alias for name in names for alias in _aliases(name, letters)}
    for pattern in patterns:
        asked = pattern.removeprefix(EXCEPT)
        if not any(_matches(name, [asked], letters) for name in names):
            tops = [name for name in ("embed", "norm", "feedback", "head") if name in known]
            kinds = [f"layers.{letter}" for letter in sorted(set(letters))]
            blocks = [*kinds, "layers.0" + (f" to layers.{len(letters) - 1}" if len(letters) > 1 else "")]
            near = nearest(asked, known, 3) or f"; the model has {', '.join([*tops, *blocks])}"
            return f"no weight or module matches {pattern!r}{near}"
    return None if select(patterns, config, gated) else "no weight is left to be trained"


def first_block(names: Iterable[str], config: Model, sleep: Sleep) -> int:
    """`TrainedWeights.first_block` for the trained weights `names`, for all programs of `sleep`. At most the last block."""
    tops = {name.split(".")[0] for name in names}
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    if "embed" in tops:
        return 0
    depth, lowest = len(config.pattern), min(blocks, default=len(config.pattern))
    first, stop = loop_range(sleep, depth)
    feedback = sleep.loop.feedback
    looped = sleep.max_passes > 1 and feedback != "embeddings"
    if looped and (lowest < stop or "feedback" in tops or (feedback == "normed" and "norm" in tops)):
        lowest = min(lowest, first)  # passes 2..N read features that depend on a trained weight
    return min(lowest, depth - 1)


def freeze(model: LanguageModel, trained: TrainedWeights) -> None:
    """Let autograd compute gradients of the trained weights alone. Gradients still pass through the frozen ones."""
    from sleeptrain.model.stack import Block

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for block in model.modules():
        if isinstance(block, Block) and trained.names is not None:
            block.differentiated = block.layer >= trained.first_block


def weights_of(config: Model, gated: bool) -> Mapping[str, Tensor]:
    """The weights of a model by name, on the meta device; names and numbers of dimensions do not need `vocab`."""
    return _weights_of(config if config.vocab else dataclasses.replace(config, vocab=2), gated)


@lru_cache(maxsize=8)
def _weights_of(config: Model, gated: bool) -> Mapping[str, Tensor]:
    import torch

    from sleeptrain.model.language import LanguageModel

    with torch.device("meta"):
        model = LanguageModel(config, gated=gated, seed=None)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _matches(name: str, patterns: Iterable[str], letters: str) -> bool:
    return any(fnmatchcase(alias, pattern) for alias in _aliases(name, letters) for pattern in patterns)


def _aliases(name: str, letters: str) -> Iterator[str]:
    """The name of a weight and those of the modules that it is in, with the number of its block and with the block's letter."""
    parts = name.split(".")
    kinds = [parts] if parts[0] != "layers" else [parts, ["layers", letters[int(parts[1])], *parts[2:]]]
    for each in kinds:
        for stop in range(1, len(each) + 1):
            yield ".".join(each[:stop])
