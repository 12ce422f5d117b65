"""Which parameters every process holds: the blocks of its pipeline stage, and its tensor-parallel shard of each."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sleeptrain.engine.optimizers import Kind, kind
from sleeptrain.model.config import Model
from sleeptrain.model.counts import parameters
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.tp_layout import TPLayout
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights


@dataclass(frozen=True)
class StageParameters:
    """What one process of a stage holds. All processes of a stage hold parameters of the same sizes."""

    blocks: tuple[int, int]
    sizes: Mapping[str, int]
    """Elements by parameter name, padding of the vocabulary included."""
    groups: Mapping[Kind, tuple[int, ...]]
    """Elements of each trained weight by optimizer group, in the order of the group."""
    trained: Mapping[str, int]
    """`sizes` of the trained weights alone."""
    matrices: tuple[tuple[int, int], ...]
    """(rows, cols) of the trained hidden matrices, in the order of the optimizer."""

    @property
    def kinds(self) -> Mapping[Kind, int]:
        """Elements of trained weights by optimizer group."""
        return {which: sum(sizes) for which, sizes in self.groups.items()}

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes.values())

    @property
    def trained_elements(self) -> int:
        """Elements of the trained weights."""
        return sum(self.trained.values())

    def partition(self, data: int) -> dict[Kind, int]:
        """Trained elements of one ZeRO partition of each group over `data` processes; DeepSpeed aligns to two elements a process."""
        return {which: -(-n // (2 * data)) * 2 for which, n in self.kinds.items()}

    def touched(self, data: int) -> int:
        """Elements of all trained weights of which a part is in a process's ZeRO partitions; of the process that has most."""
        found = Counter[int]()
        for which, partition in self.partition(data).items():
            sizes = self.groups[which]
            for weight, rank, _ in partition_parts(sizes, partition):
                found[rank] += sizes[weight]
        return max(found.values(), default=0)

    def partitioned(self, data: int) -> int:
        """Elements of one partition of all parameters, under ZeRO 3."""
        return sum(self.partition(data).values()) - -(self.elements - self.trained_elements) // data


def partition_parts(sizes: Iterable[int], partition: int) -> Iterator[tuple[int, int, int]]:
    """The parts into which ZeRO divides weights of `sizes` elements one after the other, by partitions of `partition` elements: index of
    the weight, rank of the process, elements of the part."""
    start = 0
    for weight, size in enumerate(sizes):
        stop = start + size
        for rank in range(start // partition, (stop - 1) // partition + 1):
            yield weight, rank, min(stop, (rank + 1) * partition) - max(start, rank * partition)
        start = stop


@dataclass(frozen=True)
class Parameters:
    """A model's parameters, and which process holds them."""

    parts: Mapping[str, int]
    """Of the whole model, by part: embedding, attention, deltanet, mlp, norms, head, total (a tied head counts 0)."""
    kinds: Mapping[Kind, int]
    """Trained weights of the whole model, by optimizer group."""
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
    def frozen(self) -> int:
        """Elements of the whole model that are not trained."""
        return self.total - sum(self.kinds.values())

    @property
    def held(self) -> int:
        """Elements on all pipe x tensor processes together: the whole model, copies and padding."""
        return self.tensor * sum(share.elements for share in self.stages)


def parameter_ownership(layout: Layout) -> Parameters:
    """Which process holds which parameters. Nothing is allocated."""
    model, size, gated = layout.job.model, layout.job.mesh.tensor, layout.job.sleep.gated
    whole, trained = _whole(model, gated), trained_weights(layout.job)
    full = {name: p.detach() for name, p in whole.named_parameters()}
    tp_layout = TPLayout({name: p.shape for name, p in full.items()}, MeshAxis(0, size, None))
    shards = {name: tp_layout.shard(name, p) for name, p in full.items()}
    stages, seen = [], set[str]()
    copies = padding = 0
    for blocks in layout.stages:
        names = _stage_names(model, gated, blocks.start, blocks.stop)
        for name in names:
            extra = size * shards[name].numel() - full[name].numel()
            copies += extra if tp_layout.dim(name) is None else 0
            padding += 0 if tp_layout.dim(name) is None else extra
            copies += full[name].numel() if name in seen else 0
            seen.add(name)
        held = {name: shards[name] for name in names}
        sizes = {name: shard.numel() for name, shard in held.items()}
        updated = {name: shard for name, shard in held.items() if name in trained}
        some = {name: sizes[name] for name in updated}
        shapes = tuple((p.shape[0], p.shape[1]) for name, p in updated.items() if kind(name, p) == "matrix")
        stages.append(StageParameters((blocks.start, blocks.stop), sizes, _by_kind(updated), some, shapes))
    kinds = {which: sum(n) for which, n in _by_kind({k: p for k, p in full.items() if k in trained}).items()}
    return Parameters(parameters(whole), kinds, tuple(stages), size, copies, padding)


def _by_kind(held: Mapping[str, Tensor]) -> dict[Kind, tuple[int, ...]]:
    """Elements of each parameter by optimizer group."""
    groups = dict[Kind, tuple[int, ...]]()
    for name, parameter in held.items():
        group = kind(name, parameter)
        groups[group] = (*groups.get(group, ()), parameter.numel())
    return groups


@lru_cache(maxsize=4)
def _whole(model: Model, gated: bool) -> LanguageModel:
    """The whole model on the meta device, which nobody changes."""
    return on_meta(model, gated)


@lru_cache(maxsize=512)
def _stage_names(model: Model, gated: bool, start: int, stop: int) -> tuple[str, ...]:
    """Names of the parameters of the stage that holds the blocks start..stop-1."""
    whole = _whole(model, gated)
    # A copy of its own lists of modules: keep_stage changes these, and copies of the modules themselves would take seconds.
    stage = copy.copy(whole)
    modules = whole._modules | {"layers": torch.nn.ModuleList(whole.layers)}
    stage.__dict__ |= {"_modules": modules, "_parameters": dict(whole._parameters)}
    stage.keep_stage(start, stop)
    return tuple(name for name, _ in stage.named_parameters())


def on_meta(model: Model, gated: bool = False) -> LanguageModel:
    """A model on the meta device, which allocates nothing."""
    with torch.device("meta"):
        return LanguageModel(model, gated=gated)
