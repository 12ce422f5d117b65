"""Runs a function in several real processes that form a gloo process group."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import TCPStore

# Every process imports torch, DeepSpeed and megatron-core, which takes longer than most tests compute. The fork server imports
# them once for each process that runs tests; it starts no thread, and its children share nothing but these modules.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.imports"])


def run(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    timeout: float = 120,
    daemon: bool = True,
    fresh: bool = False,
    lost: int | None = None,
) -> list[Any]:
    """`fn(*args)` in `world` new processes with RANK and the like set; returns the results by rank.

    Daemons end with this process, and must not start processes of their own, such as data workers. `fresh` processes do not come
    from the fork server: they import everything themselves, and print where this process prints. Rank `lost` must exit in `fn`;
    its result is None.

    `fn` must be importable (at the top of a test file) and joins the group itself. If a process fails, the rest are
    ended and the traceback of the one that failed first is raised; the others usually only report a lost connection.
    """
    # This process hosts the store on a port the system picks, so that no two tests can take the same one.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn") if fresh else PROCESSES
    pipes: dict[Connection, int] = {}
    processes = []
    for rank in range(world):
        receive, send = context.Pipe(duplex=False)
        environment = dict(os.environ) | {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(store.port)}
        process = context.Process(target=_main, args=(send, environment, fn, args), daemon=daemon)
        process.start()
        send.close()
        processes.append(process)
        pipes[receive] = rank
    try:
        return _collect(pipes, timeout, lost)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _collect(pipes: dict[Connection, int], timeout: float, lost: int | None) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    world = len(pipes)
    while pipes:
        ready = wait(list(pipes), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(pipes.values())} of {world} did not finish in {timeout} s")
        for pipe in ready:
            rank = pipes.pop(pipe)  # type: ignore[call-overload]
            try:
                error, result = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                if rank != lost:
                    raise AssertionError(f"rank {rank} of {world} died without a word") from None
                error = result = None
            else:
                assert rank != lost, f"rank {rank} of {world} should have exited, and returned {result}"
            if error:
                raise AssertionError(f"rank {rank} of {world} failed:\n{error}")
            results[rank] = result
    return [results[rank] for rank in sorted(results)]


def _main(pipe: Connection, environment: dict[str, str], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()  # the fork server has the environment of its own start
    os.environ.update(environment)
    os.environ.update(LOCAL_RANK=environment["RANK"], MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    try:
        outcome = (None, fn(*args))
    except BaseException:
        outcome = (traceback.format_exc(), None)
    # Pickled here: multiprocessing would send a handle to a tensor's memory, which dies with this process.
    pipe.send_bytes(pickle.dumps(outcome))
    pipe.close()
    if outcome[0] is None and torch.distributed.is_initialized():
        # A peer may still be in the last collective.
        with contextlib.suppress(RuntimeError):
            torch.distributed.barrier()
    # Not the ordinary exit: a group that is torn down can abort a process that has done its work.
    os._exit(0)
