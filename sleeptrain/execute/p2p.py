"""P2P channels between pipeline stages: one communicator per directed edge, non-blocking sends and receives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.errors import ProcessLost
from sleeptrain.schedule import Edge

Describe = Callable[[], str]
"""Returns the description of a message for an error."""


class StageLost(ProcessLost):
    """Another pipeline stage did not send or receive a message: it failed or is stuck."""


@dataclass
class PendingRecv:
    """A posted receive."""

    buffer: Tensor
    work: Any
    lost: Callable[[Exception], StageLost]

    def tensor(self) -> Tensor:
        """The received tensor; waits until it has arrived. Raises StageLost if it does not."""
        if self.work is not None:
            try:
                self.work.wait()
            except RuntimeError as error:
                raise self.lost(error) from error
            self.work = None
        return self.buffer


@dataclass(frozen=True)
class _PendingSend:
    """A posted send; it holds the tensor, which must not be reused before the send is complete."""

    tensor: Tensor
    work: Any
    lost: Callable[[Exception], StageLost]


class P2PChannels:
    """The communicators of this process's stage.

    Each directed edge has its own communicator. A communicator runs messages in the order in which they were posted, and
    NCCL does not buffer them, so two stages that both send first over a shared communicator would deadlock.
    """

    def __init__(self, pipes: Sequence[Sequence[int]], timeout: timedelta | None = None) -> None:
        """`pipes`: the ranks of the stages of every pipeline of the run, the same on all ranks. `timeout`: of a message."""
        rank = dist.get_rank()
        self.pipes, self.timeout = pipes, timeout
        self.ranks = next(pipe for pipe in pipes if rank in pipe)
        self.stage = list(self.ranks).index(rank)
        self._groups: dict[Edge, Any] = {}
        self._opened: set[Edge] = set()
        self._sends: deque[_PendingSend] = deque()

    def open(self, edges: Iterable[Edge], device: torch.device) -> None:
        """Create the communicators of the edges that have none yet; a collective over all ranks of the run."""
        new = sorted(set(edges) - self._opened)
        for edge in new:
            for pipe in self.pipes:
                # dist.new_group must be called by all ranks, members or not.
                group = dist.new_group(sorted([pipe[edge.src], pipe[edge.dst]]), timeout=self.timeout)
                if pipe == self.ranks and self.stage in (edge.src, edge.dst):
                    self._groups[edge] = group
        for edge in new:
            # NCCL connects at the first message, which blocks until both ends join. Sending one in the same order on all
            # ranks here keeps that from deadlocking in the schedule.
            if edge in self._groups and edge.direction == "reduce":
                dist.all_reduce(torch.zeros(1, device=device), group=self._groups[edge])
            elif edge in self._groups and self.stage == edge.src:
                dist.send(torch.zeros(1, device=device), self.ranks[edge.dst], self._groups[edge])
            elif edge in self._groups:
                dist.recv(torch.zeros(1, device=device), self.ranks[edge.src], self._groups[edge])
        self._opened.update(new)

    def receive(self, edge: Edge, buffer: Tensor, describe: Describe) -> PendingRecv:
        """Post a receive into `buffer`; does not wait."""
        lost = self._lost(edge.src, "waited for", describe)
        try:
            return PendingRecv(buffer, dist.irecv(buffer, self.ranks[edge.src], self._groups[edge]), lost)
        except RuntimeError as error:
            raise lost(error) from error

    def send(self, edge: Edge, tensor: Tensor, describe: Describe) -> None:
        """Post a send; does not wait."""
        tensor, lost = tensor.contiguous(), self._lost(edge.dst, "wanted to send", describe)
        try:
            work = dist.isend(tensor, self.ranks[edge.dst], self._groups[edge])
        except RuntimeError as error:
            raise lost(error) from error
        self._sends.append(_PendingSend(tensor, work, lost))
        # Under gloo is_completed() is only true after wait(), so buffers are released in flush().
        while self._sends and self._sends[0].work.is_completed():
            self._sends.popleft()

    def reduce(self, edge: Edge, tensor: Tensor, describe: Describe) -> None:
        """All-reduce (sum) a tensor between the two stages of an edge, in place."""
        other = edge.src if self.stage == edge.dst else edge.dst
        try:
            dist.all_reduce(tensor, group=self._groups[edge])
        except RuntimeError as error:
            raise self._lost(other, "waited for", describe)(error) from error

    def flush(self) -> None:
        """Wait until all sends are complete, and release their buffers."""
        while self._sends:
            send = self._sends.popleft()
            try:
                send.work.wait()
            except RuntimeError as error:
                raise send.lost(error) from error

    def _lost(self, other: int, verb: str, describe: Describe) -> Callable[[Exception], StageLost]:
        def lost(error: Exception) -> StageLost:
            return StageLost(
                f"stage {self.stage} of the pipeline {verb} {describe()}, but stage {other} (rank {self.ranks[other]}) did "
                f"not answer: it failed or is stuck; see the output of that rank ({str(error).splitlines()[0]})"
            )

        return lost


def assert_same_schedule(key: str) -> None:
    """Raise ValueError on every rank unless all ranks pass the same schedule key; a collective over all ranks.

    Ranks with different schedules would wait for messages that are never sent.
    """
    keys: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(keys, key)
    if len(set(keys)) > 1:
        raise ValueError(
            f"ranks hold different schedules (keys by rank: {', '.join(map(str, keys))}): start all ranks with the same "
            "code and recipe"
        )
