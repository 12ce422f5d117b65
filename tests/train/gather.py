"""Gathers full weights and gradients from a training of any layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.parallel.tp_layout import TPLayout


@dataclass(frozen=True)
class StateGatherer:
    """Gathers parameters first over the tensor axis, one by one, then over the pipe axis, to rank 0."""

    axes: MeshAxes
    tp_layout: TPLayout | None
    """How parameters are sharded; None if the tensor axis is one process."""
    device: torch.device
    """The device of this process, through which tensors are sent."""

    @property
    def is_gatherer(self) -> bool:
        """Whether this process collects the full parameters of its stage: one process of every stage does."""
        return self.axes.data.rank == self.axes.tensor.rank == 0

    def full(self, name: str, shard: Tensor) -> Tensor:
        """The full parameter (or gradient) `name` of this stage from its shards; a collective over the tensor axis."""
        return shard if self.tp_layout is None else gathered(self.tp_layout, name, shard)

    def gather_full_state(self, stage_state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The state of all stages on rank 0, None on other ranks; a collective over the run.

        `stage_state` has the full CPU tensors of this process's stage, and is read where `is_gatherer` only.
        """
        pipe = self.axes.pipe
        if not self.is_gatherer:
            return None
        if pipe.size == 1:
            return stage_state
        ranks = dist.get_process_group_ranks(pipe.group)
        shapes = [(name, t.shape, t.dtype) for name, t in stage_state.items()]
        shapes_by_stage: list[Any] = [None] * pipe.size
        dist.all_gather_object(shapes_by_stage, shapes, group=pipe.group)
        if pipe.rank > 0:
            for tensor in stage_state.values():
                dist.send(tensor.to(self.device), ranks[0], group=pipe.group)
            return None
        for stage in range(1, pipe.size):
            for name, shape, dtype in shapes_by_stage[stage]:
                received = torch.empty(shape, dtype=dtype, device=self.device)
                dist.recv(received, ranks[stage], group=pipe.group)
                # A tied embedding is on the first and the last stage.
                stage_state.setdefault(name, received.cpu())
        return stage_state


def gathered(layout: TPLayout, name: str, shard: Tensor) -> Tensor:
    """The full parameter or gradient from the shards of all processes, without padding; a collective over the axis."""
    dim = layout.dim(name)
    if dim is None or layout.axis.size == 1:
        return shard
    shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(layout.axis.size)]
    dist.all_gather(shards, shard.contiguous(), group=layout.axis.group)
    return torch.cat(shards, dim).narrow(0, 0, layout.shapes[name][0])


def gatherer_of(setup: Any) -> StateGatherer:
    """The gatherer of a run."""
    return StateGatherer(setup.context.axes, getattr(setup.engine.module, "tp_layout", None), setup.process.device)


def full_parameter(parameter: Tensor) -> Tensor:
    """A parameter of this process's shard in fp32: the master weight, or the frozen weight itself; a collective under ZeRO."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    if not hasattr(parameter, "ds_tensor"):
        return parameter.float()
    with zero.GatheredParameters([parameter]):
        return parameter.detach().float().clone()


def full_weights(setup: Any) -> dict[str, Tensor] | None:
    """All full parameters by name, in fp32 on the CPU, on rank 0 (None on other ranks); a collective."""
    gatherer, found = gatherer_of(setup), {}
    for name, parameter in setup.engine.module.named_parameters():
        found[name] = gatherer.full(name, full_parameter(parameter)).detach().to("cpu", copy=True)
    whole = gatherer.gather_full_state(found)
    return whole if setup.process.rank == 0 else None
