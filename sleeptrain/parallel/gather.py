"""Puts a model that lies in parts over many processes together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.parallel.mesh import MeshAxes


@dataclass(frozen=True)
class StateGatherer:
    """How the parameters lie over the processes: layers over stages, and heads over the tensor axis."""

    axes: MeshAxes
    shards: Any
    """`shards.Shards`; None where the tensor axis is one process."""
    device: torch.device

    @property
    def is_gatherer(self) -> bool:
        """Whether this process holds on to the parameters of its stage for `gather`: one in every stage does."""
        return self.axes.data.rank == self.axes.tensor.rank == 0

    def whole(self, name: str, part: Tensor) -> Tensor:
        """A parameter of this stage, whole; a collective over the tensor axis."""
        return part if self.shards is None else self.shards.whole(name, part)

    def gather(self, found: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """From what every stage found, on the CPU, all of it on rank 0 and None elsewhere; a collective over the run."""
        pipe = self.axes.pipe
        if not self.is_gatherer:
            return None
        if pipe.size == 1:
            return found
        ranks = dist.get_process_group_ranks(pipe.group)
        shapes = [(name, t.shape, t.dtype) for name, t in found.items()]
        everyone: list[Any] = [None] * pipe.size
        dist.all_gather_object(everyone, shapes, group=pipe.group)
        if pipe.rank > 0:
            for tensor in found.values():
                dist.send(tensor.to(self.device), ranks[0], group=pipe.group)
            return None
        for stage in range(1, pipe.size):
            for name, shape, dtype in everyone[stage]:
                arrived = torch.empty(shape, dtype=dtype, device=self.device)
                dist.recv(arrived, ranks[stage], group=pipe.group)
                # A tied embedding is on the first and the last stage.
                found.setdefault(name, arrived.cpu())
        return found
