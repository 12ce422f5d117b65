"""Which parameters every process holds: the blocks of its pipeline stage, and its tensor-parallel shard of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sleeptrain.engine.optimizers import Kind, kind
from sleeptrain.model.config import Model
from sleeptrain.model.counts import parameters
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.tp_layout import TPLayout
from sleeptrain.train.layout import Layout


@dataclass(frozen=True)
class StageParameters:
    """What one process of a stage holds. All processes of a stage hold parameters of the same sizes."""

    blocks: tuple[int, int]
    sizes: Mapping[str, int]
    """Elements by parameter name, padding of the vocabulary included."""
    kinds: Mapping[Kind, int]
    """Elements by optimizer group."""

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes.values())

    def partition(self, data: int) -> dict[Kind, int]:
        """Elements of one ZeRO partition of each group over `data` processes; DeepSpeed aligns to two elements a process."""
        return {which: -(-n // (2 * data)) * 2 for which, n in self.kinds.items()}


@dataclass(frozen=True)
class Parameters:
    """A model's parameters, and which process holds them."""

    parts: Mapping[str, int]
    """Of the whole model, by part: embedding, attention, deltanet, mlp, norms, head, total (a tied head counts 0)."""
    stages: tuple[StageParameters, ...]
    tensor: int
    copies: int
    """Elements held more than once: parameters that all heads share, and a tied embedding on the last stage."""
    padding: int
    """Elements that pad the vocabulary to equal shards."""

    @property
    def total(self) -> int:
        """Elements of the whole model."""
        return self.parts["total"]

    @property
    def held(self) -> int:
        """Elements on all pipe x tensor processes together: the whole model, copies and padding."""
        return self.tensor * sum(share.elements for share in self.stages)


def parameter_ownership(layout: Layout) -> Parameters:
    """Which process holds which parameters. Nothing is allocated."""
    model, size = layout.job.model, layout.job.mesh.tensor
    gated = layout.job.sleep.gated
    whole = on_meta(model, gated)
    tp_layout = TPLayout({name: p.shape for name, p in whole.named_parameters()}, MeshAxis(0, size, None))
    stages, seen = [], set[str]()
    copies = padding = 0
    for blocks in layout.stages:
        stage = on_meta(model, gated)
        stage.keep_stage(blocks.start, blocks.stop)
        sizes, kinds = {}, dict[Kind, int]()
        for name, parameter in stage.named_parameters():
            shard = tp_layout.shard(name, parameter.detach())
            sizes[name] = shard.numel()
            group = kind(name, shard)
            kinds[group] = kinds.get(group, 0) + shard.numel()
            extra = size * shard.numel() - parameter.numel()
            copies += extra if tp_layout.dim(name) is None else 0
            padding += 0 if tp_layout.dim(name) is None else extra
            copies += parameter.numel() if name in seen else 0
            seen.add(name)
        stages.append(StageParameters((blocks.start, blocks.stop), sizes, kinds))
    return Parameters(parameters(whole), tuple(stages), size, copies, padding)


def on_meta(model: Model, gated: bool = False) -> LanguageModel:
    """A model on the meta device, which allocates nothing."""
    with torch.device("meta"):
        return LanguageModel(model, gated=gated)
