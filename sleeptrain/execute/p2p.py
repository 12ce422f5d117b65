"""Messages between the stages of a pipeline: a communicator for every directed edge, and failures in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.schedule import Edge

Describe = Callable[[], str]
"""What a message is, in words; asked for when it is lost."""


class StageLost(RuntimeError):
    """Another stage of the pipeline did not send, or take, what it should have: it failed, or is stuck."""


@dataclass
class PendingRecv:
    """A message on its way here."""

    buffer: Tensor
    work: Any
    lost: Callable[[Exception], StageLost]

    def tensor(self) -> Tensor:
        """What arrived, as soon as it has."""
        if self.work is not None:
            try:
                self.work.wait()
            except RuntimeError as error:
                raise self.lost(error) from error
            self.work = None
        return self.buffer


@dataclass(frozen=True)
class _PendingSend:
    """A tensor that must stay as it is until it is through."""

    tensor: Tensor
    work: Any
    lost: Callable[[Exception], StageLost]


class P2PChannels:
    """The communicators of this process's stage.

    One for each directed edge: with fewer, stages that send to each other block for ever, since a communicator keeps the
    order in which messages were posted and NCCL has no buffers.
    """

    def __init__(self, pipes: Sequence[Sequence[int]], timeout: timedelta | None = None) -> None:
        """`pipes`: the ranks of the stages of every pipeline of the run, the same on all processes. `timeout`: how long to
        wait for a message."""
        rank = dist.get_rank()
        self.pipes, self.timeout = pipes, timeout
        self.ranks = next(pipe for pipe in pipes if rank in pipe)
        self.stage = list(self.ranks).index(rank)
        self._groups: dict[Edge, Any] = {}
        self._opened: set[Edge] = set()
        self._sent: deque[_PendingSend] = deque()

    def open(self, edges: Iterable[Edge], device: torch.device) -> None:
        """Make the communicators of these edges, where they are new; a collective over all processes of the run."""
        new = sorted(set(edges) - self._opened)
        for edge in new:
            for pipe in self.pipes:
                # A torch group is made by all processes, members or not.
                group = dist.new_group(sorted([pipe[edge.src], pipe[edge.dst]]), timeout=self.timeout)
                if pipe == self.ranks and self.stage in (edge.src, edge.dst):
                    self._groups[edge] = group
        for edge in new:
            # NCCL connects at the first message, and waits for the other end; so the first messages go in one order.
            if edge in self._groups and edge.direction == "reduce":
                dist.all_reduce(torch.zeros(1, device=device), group=self._groups[edge])
            elif edge in self._groups and self.stage == edge.src:
                dist.send(torch.zeros(1, device=device), self.ranks[edge.dst], self._groups[edge])
            elif edge in self._groups:
                dist.recv(torch.zeros(1, device=device), self.ranks[edge.src], self._groups[edge])
        self._opened.update(new)

    def receive(self, edge: Edge, buffer: Tensor, say: Describe) -> PendingRecv:
        """Post a receive; does not wait."""
        lost = self._lost(edge.src, "waited for", say)
        try:
            return PendingRecv(buffer, dist.irecv(buffer, self.ranks[edge.src], self._groups[edge]), lost)
        except RuntimeError as error:
            raise lost(error) from error

    def send(self, edge: Edge, tensor: Tensor, say: Describe) -> None:
        """Post a send; does not wait."""
        tensor, lost = tensor.contiguous(), self._lost(edge.dst, "wanted to send", say)
        try:
            work = dist.isend(tensor, self.ranks[edge.dst], self._groups[edge])
        except RuntimeError as error:
            raise lost(error) from error
        self._sent.append(_PendingSend(tensor, work, lost))
        # gloo says so only to who waits; there, what was sent stays until `flush`.
        while self._sent and self._sent[0].work.is_completed():
            self._sent.popleft()

    def reduce(self, edge: Edge, tensor: Tensor, say: Describe) -> None:
        """Sum a tensor with that of the other end, in place on both."""
        other = edge.src if self.stage == edge.dst else edge.dst
        try:
            dist.all_reduce(tensor, group=self._groups[edge])
        except RuntimeError as error:
            raise self._lost(other, "waited for", say)(error) from error

    def flush(self) -> None:
        """Wait until all that was sent is through."""
        while self._sent:
            sent = self._sent.popleft()
            try:
                sent.work.wait()
            except RuntimeError as error:
                raise sent.lost(error) from error

    def _lost(self, other: int, verb: str, say: Describe) -> Callable[[Exception], StageLost]:
        def lost(error: Exception) -> StageLost:
            return StageLost(
                f"stage {self.stage} of the pipeline {verb} {say()}, but stage {other} (rank {self.ranks[other]}) did not "
                f"answer: it failed, or is stuck; its own output says why ({str(error).splitlines()[0]})"
            )

        return lost


def agree(key: str, what: str) -> None:
    """Raise ValueError if processes are about to do different things: they would wait for each other for ever."""
    keys: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(keys, key)
    if len(set(keys)) > 1:
        raise ValueError(f"processes hold different {what} ({', '.join(map(str, keys))}): start all of them alike")
