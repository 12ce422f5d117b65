"""Muon for hidden matrices and AdamW for the rest, over the flat partitions of ZeRO 1 and 2.

DeepSpeed has its own Muon. Under ZeRO 1 and 2 in fp32, and under ZeRO 2 in bf16, it orthogonalises each matrix before it
takes the gradient norm (0.19.8, `stage_1_and_2.get_flat_partition`). The norm that it reports and clips by then mixes Muon's
updates with AdamW's gradients, so that clipping shrinks the step by the square root of the model's size; and under ZeRO 2
in bf16 its momentum is bf16. This one reads averaged and clipped fp32 gradients at every stage, and its momentum is
partitioned like the master weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.engine.orthogonalise import batch_sizes, orthogonalise


@dataclass(frozen=True)
class Fragment:
    """The contiguous part of one flattened matrix that lies in one process's partition."""

    matrix: int
    """Index of the matrix in the parameter group."""
    start: int
    """First element in the flat partition."""
    offset: int
    """First element in the flattened matrix."""
    numel: int


Remote = dict[int, list[tuple[Fragment, Tensor]]]
"""Other ranks' fragments of matrices, with their values, by matrix."""


@dataclass(frozen=True)
class MatrixPartition:
    """The fragments of the matrices on every process of the data group."""

    shapes: list[tuple[int, int]]
    """(rows, cols) of every matrix."""
    fragments: list[list[Fragment]]
    """By rank in the group."""
    rank: int
    group: Any
    """The process group; None for the default one."""

    @property
    def local_fragments(self) -> list[Fragment]:
        """The fragments of this process."""
        return self.fragments[self.rank]

    @cached_property
    def batches(self) -> list[list[Fragment]]:
        """The fragments of this process by batches of matrices of one shape, which are orthogonalised together."""
        by_shape: dict[tuple[int, int], list[Fragment]] = defaultdict(list)
        for fragment in self.local_fragments:
            by_shape[self.shapes[fragment.matrix]].append(fragment)
        found = []
        for shape, fragments in by_shape.items():
            rest = iter(fragments)
            found += [[next(rest) for _ in range(size)] for size in batch_sizes(len(fragments), *shape)]
        return found

    def fragments_to_send(self, source: int, destination: int) -> list[Fragment]:
        """Fragments of rank `source` whose matrices also have a fragment on rank `destination`, in order of the matrices."""
        matrices = {fragment.matrix for fragment in self.fragments[destination]}
        return sorted((f for f in self.fragments[source] if f.matrix in matrices), key=lambda f: f.matrix)

    @cached_property
    def divided(self) -> frozenset[int]:
        """The matrices that lie in several partitions."""
        parts = Counter(fragment.matrix for fragments in self.fragments for fragment in fragments)
        return frozenset(matrix for matrix, count in parts.items() if count > 1)

    @cached_property
    def sent(self) -> list[list[Fragment]]:
        """Fragments that this process sends, by the rank that gets them; made once, since their number grows with that of ranks."""
        ranks = range(len(self.fragments))
        return [self.fragments_to_send(self.rank, other) if other != self.rank else [] for other in ranks]

    @cached_property
    def received(self) -> list[list[Fragment]]:
        """Fragments that this process gets, by the rank that sends them."""
        ranks = range(len(self.fragments))
        return [self.fragments_to_send(other, self.rank) if other != self.rank else [] for other in ranks]


class Muon(torch.optim.AdamW):
    """Muon for groups with `muon=True`, AdamW for the others.

    The parameters of a Muon group are matrices or, after `set_partition`, one flat partition of them. Weight decay is
    decoupled; an update is scaled by sqrt(max(1, rows / cols)). State: `momentum_buffer`, of the parameter's shape.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, ns_dtype: torch.dtype, **adam: Any) -> None:
        super().__init__(groups, **adam)
        self.momentum = momentum
        self.ns_dtype = ns_dtype
        self.partition: MatrixPartition | None = None

    def set_partition(self, partition: MatrixPartition) -> None:
        """Declare that the one parameter of the Muon group is a flat partition, as ZeRO makes it."""
        self.partition = partition

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every group; a collective over the data group if a matrix lies in several partitions."""
        all_groups = self.param_groups
        self.param_groups = [group for group in all_groups if not group["muon"]]
        super().step()
        self.param_groups = all_groups
        for group in all_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            # AdamW.load_state_dict expects it in the state of every parameter.
            state["step"] = torch.tensor(0.0)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        partition = self.partition or one_matrix(parameter)
        weights = parameter.view(-1)
        empty = weights.new_empty(0, dtype=self.ns_dtype)
        write = partial(self._write_direction, gradient.view(-1), momentum.view(-1))
        remote = exchange_fragments(write, partition, empty)
        for fragments in partition.batches:
            rows, cols = partition.shapes[fragments[0].matrix]
            scale = -group["lr"] * max(1.0, rows / cols) ** 0.5
            batch = whole_matrices(fragments, remote, write, empty.new_empty(len(fragments), rows, cols))
            add_changes(weights, fragments, orthogonalise(batch, scale=scale), 1 - group["lr"] * group["weight_decay"])
            del batch  # before there is the next one

    def _write_direction(self, gradient: Tensor, momentum: Tensor, fragment: Fragment, out: Tensor) -> None:
        """The direction of descent of a fragment, from gradient and momentum of this process's partition, in the dtype of `out`."""
        start, count = fragment.start, fragment.numel
        torch.lerp(gradient.narrow(0, start, count), momentum.narrow(0, start, count), self.momentum, out=out)


def whole_matrices(
    fragments: list[Fragment], remote: Remote, write: Callable[[Fragment, Tensor], None], batch: Tensor
) -> Tensor:
    """`batch` [fragments, rows, cols], filled with the matrices that the fragments are of: own parts are written, others' copied."""
    for fragment, matrix in zip(fragments, batch.flatten(1), strict=True):
        write(fragment, matrix.narrow(0, fragment.offset, fragment.numel))
        for other, values in remote.get(fragment.matrix, ()):
            matrix.narrow(0, other.offset, other.numel).copy_(values)
    return batch


def add_changes(weights: Tensor, fragments: list[Fragment], changes: Tensor, kept: float) -> None:
    """Fragments of `weights` become `kept` times themselves plus those of `changes` [fragments, rows, cols]; one operator a fragment."""
    for fragment, matrix in zip(fragments, changes.flatten(1), strict=True):
        own = weights.narrow(0, fragment.start, fragment.numel)
        torch.add(matrix.narrow(0, fragment.offset, fragment.numel), own, alpha=kept, out=own)


def exchange_fragments(write: Callable[[Fragment, Tensor], None], partition: MatrixPartition, empty: Tensor) -> Remote:
    """Other ranks' fragments of the matrices that this process has a fragment of: (fragment, values) pairs by matrix.

    One all-to-all over the data group, of the matrices that lie in several partitions; no collective if there are none. `write` writes the
    values of a fragment of this process into a tensor; messages have dtype and device of `empty`.
    """
    sent, received = partition.sent, partition.received
    remote: Remote = {matrix: [] for matrix in partition.divided}
    if not remote:
        return remote
    send_sizes = [sum(f.numel for f in fragments) for fragments in sent]
    receive_sizes = [sum(f.numel for f in fragments) for fragments in received]
    send_buffer, receive_buffer = empty.new_empty(sum(send_sizes)), empty.new_empty(sum(receive_sizes))
    position = 0
    for fragment in (f for fragments in sent for f in fragments):
        write(fragment, send_buffer.narrow(0, position, fragment.numel))
        position += fragment.numel
    dist.all_to_all_single(receive_buffer, send_buffer, receive_sizes, send_sizes, group=partition.group)
    position = 0
    for fragment in (f for fragments in received for f in fragments):
        remote[fragment.matrix].append((fragment, receive_buffer.narrow(0, position, fragment.numel)))
        position += fragment.numel
    return remote


def one_matrix(matrix: Tensor) -> MatrixPartition:
    """The partition of a matrix [rows, cols] that is a parameter by itself."""
    return MatrixPartition([(matrix.shape[0], matrix.shape[1])], [[Fragment(0, 0, 0, matrix.numel())]], 0, None)


def matrix_partition(parameters: list[torch.nn.Parameter], group: Any) -> MatrixPartition:
    """The partition that DeepSpeed's ZeRO 1 or 2 made of the matrices `parameters`; a collective over `group`.

    Reads the map from a parameter to its fragment that DeepSpeed keeps for its own checkpoints.
    """
    local_fragments = []
    for index, parameter in enumerate(parameters):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            address, offset = mapping.hp_fragment_address, mapping.lp_fragment_address.start
            local_fragments.append(Fragment(index, start=address.start, offset=offset, numel=address.numel))
    fragments: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(fragments, local_fragments, group=group)
    shapes = [(p.shape[0], p.shape[1]) for p in parameters]
    return MatrixPartition(shapes, fragments, dist.get_rank(group), group)
