"""Processes that form a process group and do what they are told, one order after the other; in between they wait."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed import TCPStore

Orders = Mapping[str, Callable[..., Any]]
"""What a process can be told, by name."""


class Team:
    """`world` processes with RANK and the like set, each of which makes its orders with `make(*args)`.

    `make` must be importable and joins the group itself. An order goes to all processes and ends when all have done it. A
    context: at its end the processes end too.
    """

    def __init__(self, world: int, make: Callable[..., Orders], *args: Any) -> None:
        # This process hosts the store on a port that the system picks.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, world, self._store.port, make, args), daemon=True
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()

    def do(self, order: str, *args: Any) -> list[Any]:
        """What the processes answer to an order, by rank. RuntimeError, with its traceback, if one of them fails."""
        for pipe in self._pipes:
            pipe.send((order, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            try:
                error, answer = pipe.recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} of {len(self._pipes)} died without a word") from None
            if error:
                raise RuntimeError(f"rank {rank} of {len(self._pipes)}, {order}:\n{error}")
            answers.append(answer)
        return answers


def _serve(pipe: Connection, rank: int, world: int, port: int, make: Callable[..., Orders], args: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    torch.set_num_threads(1)
    orders: Orders | None = None
    while True:
        try:
            order, words = pipe.recv()
        except EOFError:
            break
        try:
            orders = make(*args) if orders is None else orders
            answer = (None, orders[order](*words))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
    # Not the ordinary exit: a group that is torn down can abort a process that has done its work.
    os._exit(0)
