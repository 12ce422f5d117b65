"""Muon for hidden matrices and AdamW for the rest, over the flat partitions that ZeRO hands to an optimizer.

DeepSpeed has a Muon of its own. Under ZeRO 1 and 2 in fp32, and under ZeRO 2 in bf16, it orthogonalises each matrix
before it takes the norm (0.19.8, `stage_1_and_2.get_flat_partition`): the norm it reports, and clips by, mixes Muon's
updates with AdamW's gradients, so that clipping shrinks the step by the square root of the model's size; and under
ZeRO 2 in bf16 its momentum is bf16. Here the optimizer sees gradients that were averaged and clipped, in fp32, whatever
the stage, and its momentum has the layout of the master weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration (Jordan et al. 2024, Muon): steepest at zero; singular values end between about 0.7 and 1.2."""


def orthogonalise(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to `matrix` [rows, cols], by Newton-Schulz in `dtype`; returned in that dtype.

    `matrix` is normalised in its own dtype first. Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = COEFFICIENTS
    x = (matrix / matrix.norm().clamp(min=1e-7)).to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@dataclass(frozen=True)
class Fragment:
    """The part of one matrix that lies in this process's partition."""

    matrix: int
    """Which matrix, counted in the order of the parameter group."""
    start: int
    """Where the part begins in the flat partition, in elements."""
    offset: int
    """Where the part begins in the flattened matrix."""
    numel: int


@dataclass(frozen=True)
class MatrixPartition:
    """Which parts of which matrices every process of the data group holds."""

    shapes: list[tuple[int, int]]
    everyone: list[list[Fragment]]
    """By rank in the group."""
    rank: int
    group: Any
    """The process group; None for the default one."""

    @property
    def mine(self) -> list[Fragment]:
        """What this process holds."""
        return self.everyone[self.rank]

    def common(self, one: int, other: int) -> list[Fragment]:
        """The fragments of rank `one` whose matrices rank `other` holds a part of, too, in the order of the matrices."""
        theirs = {fragment.matrix for fragment in self.everyone[other]}
        return sorted((f for f in self.everyone[one] if f.matrix in theirs), key=lambda f: f.matrix)


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with `muon=True`, whose parameters are matrices or, after `attach`, one flat partition.

    Weight decay is decoupled; an update is scaled by sqrt(max(1, rows / cols)). State: `momentum_buffer`, as the parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, ns_dtype: torch.dtype, **adam: Any) -> None:
        super().__init__(groups, **adam)
        self.momentum = momentum
        self.ns_dtype = ns_dtype
        self.layout: MatrixPartition | None = None

    def attach(self, layout: MatrixPartition) -> None:
        """From now on the one parameter of the muon group is a flat partition with this layout."""
        self.layout = layout

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every group; a collective over the data group if any matrix lies in several partitions."""
        everything = self.param_groups
        self.param_groups = [group for group in everything if not group["muon"]]
        super().step()
        self.param_groups = everything
        for group in everything:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            # AdamW, when it loads a state, looks for one in every parameter's.
            state["step"] = torch.tensor(0.0)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        direction = torch.lerp(gradient, momentum, self.momentum)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        if self.layout is None:
            parameter.add_(self._scaled(direction), alpha=-group["lr"])
            return
        from_others = exchange(direction, self.layout)
        for part in self.layout.mine:
            own = direction.narrow(0, part.start, part.numel)
            rows, cols = self.layout.shapes[part.matrix]
            if part.numel < rows * cols:
                whole = direction.new_zeros(rows * cols)
                whole.narrow(0, part.offset, part.numel).copy_(own)
                for other, values in from_others[part.matrix]:
                    whole.narrow(0, other.offset, other.numel).copy_(values)
            else:
                whole = own
            update = self._scaled(whole.view(rows, cols)).reshape(-1).narrow(0, part.offset, part.numel)
            parameter.narrow(0, part.start, part.numel).add_(update, alpha=-group["lr"])

    def _scaled(self, direction: Tensor) -> Tensor:
        rows, cols = direction.shape
        return orthogonalise(direction, self.ns_dtype).to(direction.dtype) * max(1.0, rows / cols) ** 0.5


def exchange(flat: Tensor, layout: MatrixPartition) -> dict[int, list[tuple[Fragment, Tensor]]]:
    """The parts, held by others, of the matrices this process holds a part of: by matrix, (fragment, its values).

    One all-to-all, of nothing but matrices that lie in several partitions; none at all where there are no such.
    """
    ranks: Sequence[int] = range(len(layout.everyone))
    shared = {f.matrix for a in ranks for b in ranks if a != b for f in layout.common(a, b)}
    received: dict[int, list[tuple[Fragment, Tensor]]] = {matrix: [] for matrix in shared}
    if not shared:
        return received
    out = [[f for f in layout.common(layout.rank, r) if r != layout.rank] for r in ranks]
    into = [[f for f in layout.common(r, layout.rank) if r != layout.rank] for r in ranks]
    sizes_out = [sum(f.numel for f in parts) for parts in out]
    sizes_in = [sum(f.numel for f in parts) for parts in into]
    send = torch.cat([flat.new_empty(0)] + [flat.narrow(0, f.start, f.numel) for parts in out for f in parts])
    arrived = flat.new_empty(sum(sizes_in))
    dist.all_to_all_single(arrived, send, sizes_in, sizes_out, group=layout.group)
    position = 0
    for part in (f for parts in into for f in parts):
        received[part.matrix].append((part, arrived.narrow(0, position, part.numel)))
        position += part.numel
    return received


def matrix_partition(parameters: list[torch.nn.Parameter], group: Any) -> MatrixPartition:
    """The layout of the partition that DeepSpeed's ZeRO 1 or 2 made of `parameters`; a collective over `group`.

    Reads the map from a parameter to its part of the partition that DeepSpeed keeps for its own checkpoints.
    """
    mine = []
    for index, parameter in enumerate(parameters):
        held = parameter._hp_mapping  # type: ignore[attr-defined]
        if held is not None:
            where, part = held.hp_fragment_address, held.lp_fragment_address
            mine.append(Fragment(index, start=where.start, offset=part.start, numel=where.numel))
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    shapes = [(p.shape[0], p.shape[1]) for p in parameters]
    return MatrixPartition(shapes, everyone, dist.get_rank(group), group)
