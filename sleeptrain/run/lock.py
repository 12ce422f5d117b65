"""The lock of a run folder: one training at a time writes into it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sleeptrain.errors import TryAgain, UserError
from sleeptrain.run.scheduler import job_number

LOCK = "lock"
PREDECESSOR = 120.0
"""Seconds that a job of a scheduler waits for the lock: when it is requeued, its predecessor may still be ending."""
POLL = 0.5


@contextmanager
def run_lock(folder: Path, wait: float | None = None) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it is new. For rank 0.

    The kernel frees it when the process ends, however it ends. It is a POSIX record lock: it holds between nodes where the
    file system has such locks for all clients (NFS with lockd; Lustre mounted with `flock`), and child processes do not inherit it.
    Raises UserError if another process holds it, or under a scheduler TryAgain after `wait` seconds; OSError if the folder
    cannot be written.
    """
    scheduled = job_number() is not None
    wait = (PREDECESSOR if scheduled else 0.0) if wait is None else wait
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait
        while not _take(handle):
            if time.monotonic() >= deadline:
                message = f"{folder} is in use by {_holder(handle)}"
                if scheduled:
                    raise TryAgain(f"{message}; waited {wait:.0f} s for it to end")
                raise UserError(f"{message}; wait until it ends, or name another folder with run_dir=...")
            time.sleep(POLL)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    """Whether the lock is ours now. Raises OSError for anything else than that another process holds it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _me() -> dict[str, str]:
    job = job_number()
    return {"process": str(os.getpid()), "host": socket.gethostname(), **({"job": job} if job else {})}


def _holder(handle: int) -> str:
    """Who holds the lock, as it has written down."""
    try:
        body = json.loads(os.pread(handle, 4096, 0))
        job = f", job {body['job']}" if "job" in body else ""
        return f"process {body['process']} on {body['host']}{job}"
    except (ValueError, LookupError, TypeError):
        return "another process"
