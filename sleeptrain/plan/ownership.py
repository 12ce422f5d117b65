"""Which parameters every process holds: the layers of its stage, and of each its part."""

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
from sleeptrain.train.build_model import stages_of
from sleeptrain.train.job import Job


@dataclass(frozen=True)
class StageParameters:
    """What a process of one stage holds; those beside it on the tensor and data axes hold parameters of the same sizes."""

    blocks: tuple[int, int]
    sizes: Mapping[str, int]
    """Elements by name of the parameter, rows that pad the vocabulary included."""
    kinds: Mapping[Kind, int]
    """Elements by the group of the optimizer that they belong to."""

    @property
    def elements(self) -> int:
        """All of them."""
        return sum(self.sizes.values())

    def partition(self, data: int) -> dict[Kind, int]:
        """Elements of each group's part when `data` processes share it; DeepSpeed aligns to two elements a process."""
        return {which: -(-n // (2 * data)) * 2 for which, n in self.kinds.items()}


@dataclass(frozen=True)
class Parameters:
    """A model's parameters, and who holds them."""

    parts: Mapping[str, int]
    """Of the whole model, by part: embedding, attention, deltanet, mlp, norms, head, total (a tied head counts 0)."""
    stages: tuple[StageParameters, ...]
    tensor: int
    copies: int
    """Elements that are held more than once: what all heads share, and a tied embedding on the last stage."""
    padding: int
    """Elements that pad the vocabulary so that it divides."""

    @property
    def total(self) -> int:
        """Of the whole model."""
        return self.parts["total"]

    @property
    def held(self) -> int:
        """Of all pipe x tensor processes together: the whole model, copies and padding."""
        return self.tensor * sum(share.elements for share in self.stages)


def parameter_ownership(job: Job) -> Parameters:
    """Who holds what. The job must be complete, and its model one that can be laid out so. Nothing is allocated."""
    whole, size = on_meta(job.model), job.mesh.tensor
    shards = TPLayout({name: p.shape for name, p in whole.named_parameters()}, MeshAxis(0, size, None))
    found, seen = [], set[str]()
    copies = padding = 0
    for part in stages_of(job):
        stage = on_meta(job.model)
        stage.keep(part.start, part.stop)
        sizes, kinds = {}, dict[Kind, int]()
        for name, parameter in stage.named_parameters():
            cut = shards.shard(name, parameter.detach())
            sizes[name] = cut.numel()
            group = kind(name, cut)
            kinds[group] = kinds.get(group, 0) + cut.numel()
            extra = size * cut.numel() - parameter.numel()
            copies += extra if shards.dim(name) is None else 0
            padding += 0 if shards.dim(name) is None else extra
            copies += parameter.numel() if name in seen else 0
            seen.add(name)
        found.append(StageParameters((part.start, part.stop), sizes, kinds))
    return Parameters(parameters(whole), tuple(found), size, copies, padding)


def on_meta(model: Model) -> LanguageModel:
    """A model without memory."""
    with torch.device("meta"):
        return LanguageModel(model)
