"""Start a command as N ranks on this machine: `python -m sleep_launch.local --processes 2 -- sleeptrain train rule110-tiny`.

Each rank gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS=1. Rank 0 owns the
terminal; the others write to files. SIGINT and SIGTERM are passed on to every rank, which decides what they mean. When a rank
fails, what it said last is shown and the others are ended.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

TAIL = 40
"""Lines of a failed rank's output that are shown."""
ALSO_FAILED = 1.0
"""Seconds in which other ranks may fail too: the one that broke first is not always the one that exits first."""
GRACE = 10.0
"""Seconds between asking a rank to end and killing it."""
TIMED_OUT = 124


def run(
    command: list[str],
    processes: int,
    *,
    env: Mapping[str, str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> int:
    """Runs `command` as `processes` ranks and waits for all of them.

    command    program and arguments; a program that is not on PATH is looked up beside the running Python
    env        variables on top of this process's own
    log_dir    where `rank-1.log`, ... go (default: a temporary folder, removed when all goes well)
    timeout    seconds after which all ranks are ended and 124 is returned

    Returns 0 when all ranks did, else the exit status of the first rank that failed (128 + n for one ended by signal n).
    Raises ValueError for a program that does not exist or a number of processes below 1.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: must be at least 1")
    arguments = [_program(command), *command[1:]]
    folder = Path(log_dir) if log_dir is not None else Path(tempfile.mkdtemp(prefix="sleep-launch-"))
    folder.mkdir(parents=True, exist_ok=True)
    status = 1
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with _forwarding(ranks):
            port = str(_free_port())
            for rank in range(processes):
                ranks.append(_start(arguments, rank, processes, port, env or {}, folder))
            status = _watch(ranks, folder, timeout)
    finally:
        _end(ranks)
        if log_dir is None and status == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _program(command: list[str]) -> str:
    if not command:
        raise ValueError("no command to run; write it after --")
    beside = Path(sys.executable).parent / command[0]
    found = shutil.which(command[0]) or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise ValueError(f"{command[0]}: no such program on PATH or beside {sys.executable}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    command: list[str], rank: int, size: int, port: str, extra: Mapping[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    env = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        **extra,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    # A session of its own: Ctrl-C reaches a rank once, through us, and its workers can be ended with it.
    if rank == 0:
        return subprocess.Popen(command, env=env, start_new_session=True)
    with open(folder / f"rank-{rank}.log", "wb") as log:
        return subprocess.Popen(
            command, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


@contextlib.contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes SIGINT and SIGTERM on while ranks run. Only a main thread may handle signals; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(ranks: list[subprocess.Popen[bytes]], folder: Path, timeout: float | None) -> int:
    """Waits until all ranks are done or one has failed; says which, and returns the status of the whole."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(ranks)):
        threading.Thread(target=_report_end, args=(ranks[index], index, ended), daemon=True).start()
    until = math.inf if timeout is None else time.monotonic() + timeout
    failed: list[int] = []
    for _ in ranks:
        try:
            index = ended.get(timeout=None if until == math.inf else max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if ranks[index].returncode != 0:
            until = until if failed else min(until, time.monotonic() + ALSO_FAILED)
            failed.append(index)
    else:
        if not failed:
            return 0
    for index in failed:
        print(f"sleep_launch: rank {index} of {len(ranks)} {_how(ranks[index].returncode)}", file=sys.stderr)
        _show(index, folder)
    if failed:
        code = ranks[failed[0]].returncode
        return 128 - code if code < 0 else code
    print(f"sleep_launch: still running after {timeout:g} s; all ranks are ended", file=sys.stderr)
    for index in range(len(ranks)):
        _show(index, folder)
    return TIMED_OUT


def _report_end(rank: subprocess.Popen[bytes], index: int, ended: queue.SimpleQueue[int]) -> None:
    rank.wait()
    ended.put(index)


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"


def _show(rank: int, folder: Path) -> None:
    """The last lines of a rank's log; rank 0's output has been on the terminal already."""
    path = folder / f"rank-{rank}.log"
    lines = path.read_text(errors="replace").splitlines() if rank > 0 else []
    if lines:
        print(f"--- the last lines of {path}", *lines[-TAIL:], "---", sep="\n", file=sys.stderr, flush=True)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Ends the ranks that still run, politely first, and then whatever processes they leave behind."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sleep_launch.local",
        description="Run a command as several ranks on this machine.",
        epilog="example:\n  python -m sleep_launch.local --processes 2 -- sleeptrain train rule110-tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=1, help="number of ranks (default 1)")
    parser.add_argument("--log-dir", help="folder for the output of ranks 1 and up")
    parser.add_argument("--timeout", type=float, help="seconds after which all ranks are ended")
    parser.add_argument("command", nargs="+", help="the command, after --")
    args = parser.parse_args(argv)
    try:
        return run(args.command, args.processes, log_dir=args.log_dir, timeout=args.timeout)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
