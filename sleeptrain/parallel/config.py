"""The `mesh:` section: how many processes share what."""

from __future__ import annotations

from dataclasses import dataclass

from sleeptrain.config.errors import Problem


@dataclass(frozen=True)
class Mesh:
    """How the processes of a run are arranged."""

    data: int = 0
    """Processes that share the rows of a batch; 0 takes all there are."""
    pipe: int = 1
    """Stages that share the layers."""
    tensor: int = 1
    """Processes that share every layer."""
    zero: int = 1
    """ZeRO stage over the data axis: 1 divides the optimizer's state, 2 the gradients too."""

    def problems(self) -> list[Problem]:
        """What is wrong with the values, one by one."""
        found = []
        if self.data < 0:
            found.append(Problem("data", "must be a number of processes, or 0 for all there are"))
        for name in ("pipe", "tensor"):
            if getattr(self, name) != 1:
                found.append(Problem(name, "is not available in this version: leave it at 1"))
        if self.zero not in (1, 2):
            found.append(Problem("zero", "must be 1 or 2; 3 is not available in this version, and 0 is not offered"))
        return found
