"""Work divided over processes, which end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def available() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], processes: int) -> Iterator[int]:
    """Run `work(*call)` for every call on some processes; yield the number of each call when it is done, in any order.

    The first error ends the others. ValueError if a process is killed. One process, or one call, runs in this one.
    """
    if min(processes, len(calls)) <= 1:
        for number, call in enumerate(calls):
            work(*call)
            yield number
        return
    # A forked process has the libraries that this process has imported; a spawned one would import them for seconds.
    context = multiprocessing.get_context("fork")
    start = (os.getpid(),)
    pool = ProcessPoolExecutor(min(processes, len(calls)), context, initializer=_end_with_parent, initargs=start)
    try:
        numbers = {pool.submit(work, *call): number for number, call in enumerate(calls)}
        for future in as_completed(numbers):
            future.result()
            yield numbers[future]
    except BrokenProcessPool:
        raise ValueError(
            "a process of the build was killed, perhaps since memory ran out; use fewer processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # a process that waits for work would wait for ever

    threading.Thread(target=watch, daemon=True).start()
