"""Launch a command as N ranks on this machine: `python -m sleep_launch.local --processes 2 -- sleeptrain train rule110-tiny`.

Sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and, unless it is set, OMP_NUM_THREADS=1 for each
rank. Rank 0 inherits the terminal; the other ranks write to log files. SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are forwarded
to every rank. When a rank fails, the last lines of its log are shown and the other ranks are terminated. When the launcher is killed,
every rank gets SIGTERM.
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

from sleep_launch import parent

SHOWN_LINES = 40
"""Number of lines of a failed rank's log that are shown."""
FAILURE_WINDOW_S = 1.0
"""Seconds after the first failure in which other failed ranks are reported too: the first to exit may not be the cause."""
GRACE_PERIOD_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
CONTINUE = 75
"""Exit status of a rank that has saved its state and can be started again."""
TIMED_OUT = 124
"""Exit status after a timeout, as of timeout(1)."""


def run(
    command: list[str],
    processes: int,
    *,
    env: Mapping[str, str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> int:
    """Run `command` as `processes` ranks and wait for all of them.

    command    program and arguments; a program that is not on PATH is looked up in the folder of the running Python
    env        environment variables in addition to this process's own
    log_dir    folder of `rank-1.log`, ... (default: a temporary folder, removed if all ranks succeed)
    timeout    seconds after which all ranks are terminated and 124 is returned

    Returns 0 if all ranks returned 0, else the exit status of the first rank that failed (128 + n if signal n ended it).
    Raises ValueError for a program that does not exist or for fewer than one process.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: must be at least 1")
    arguments = [_find_program(command), *command[1:]]
    folder = Path(log_dir) if log_dir is not None else Path(tempfile.mkdtemp(prefix="sleep-launch-"))
    folder.mkdir(parents=True, exist_ok=True)
    status = 1
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with _forwarded_signals(ranks) as signals:
            port = str(_free_port())
            for rank in range(processes):
                ranks.append(_start(arguments, rank, processes, port, env or {}, folder))
            signals.forward()
            status = _wait_all(ranks, folder, timeout)
    finally:
        _terminate(ranks)
        if log_dir is None and status == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _find_program(command: list[str]) -> str:
    """Path of the command's program."""
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
    # Each rank has its own session: Ctrl-C reaches it once, forwarded by us, and its workers can be killed as a group.
    tied = [sys.executable, parent.__file__, str(int(signal.SIGTERM)), str(os.getpid()), *command]
    if rank == 0:
        return subprocess.Popen(tied, env=env, start_new_session=True)
    with open(folder / f"rank-{rank}.log", "wb") as log:
        return subprocess.Popen(
            tied, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


class _Signals:
    """Signals of the launcher, each forwarded once to all ranks. Those that arrive while ranks are started wait for the last one."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self._ranks = ranks
        self._pending: list[int] = []
        self._started = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._pending.append(number)
        if self._started:
            self.forward()

    def forward(self) -> None:
        """Send to running ranks what has arrived, and from now on everything at once."""
        self._started = True
        while self._pending:
            number = self._pending.pop(0)
            for rank in self._ranks:
                if rank.poll() is None:
                    rank.send_signal(number)


@contextlib.contextmanager
def _forwarded_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[_Signals]:
    """Receives signals for the ranks. Does nothing outside the main thread, which alone may handle signals."""
    signals = _Signals(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handlers = {number: signal.signal(number, signals.receive) for number in FORWARDED}
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait_all(ranks: list[subprocess.Popen[bytes]], folder: Path, timeout: float | None) -> int:
    """Wait until all ranks have exited or one has failed. Reports failed ranks and returns the overall exit status."""
    exited: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(ranks)):
        threading.Thread(target=_report_exit, args=(ranks[index], index, exited), daemon=True).start()
    until = math.inf if timeout is None else time.monotonic() + timeout
    failed: list[int] = []
    for _ in ranks:
        try:
            index = exited.get(timeout=None if until == math.inf else max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if ranks[index].returncode != 0:
            until = until if failed else min(until, time.monotonic() + FAILURE_WINDOW_S)
            failed.append(index)
    else:
        if not failed:
            return 0
    for index in failed:
        print(f"sleep_launch: rank {index} of {len(ranks)} {_describe_exit(ranks[index].returncode)}", file=sys.stderr)
        _show_log(index, folder)
    if failed:
        code = ranks[failed[0]].returncode
        return 128 - code if code < 0 else code
    print(f"sleep_launch: still running after {timeout:g} s; all ranks are terminated", file=sys.stderr)
    for index in range(len(ranks)):
        _show_log(index, folder)
    return TIMED_OUT


def _report_exit(rank: subprocess.Popen[bytes], index: int, exited: queue.SimpleQueue[int]) -> None:
    rank.wait()
    exited.put(index)


def _describe_exit(code: int) -> str:
    if code == CONTINUE:
        return "can be continued (exit status 75)"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"


def _show_log(rank: int, folder: Path) -> None:
    """Print the last lines of a rank's log. Rank 0 has no log, because its output went to the terminal."""
    path = folder / f"rank-{rank}.log"
    lines = path.read_text(errors="replace").splitlines() if rank > 0 else []
    if lines:
        print(f"--- last lines of {path}", *lines[-SHOWN_LINES:], "---", sep="\n", file=sys.stderr, flush=True)


def _terminate(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to running ranks, then SIGKILL after the grace period to all processes of every rank's session."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + GRACE_PERIOD_S
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sleep_launch.local",
        description="Run a command as several ranks on this machine.",
        epilog="example:\n  python -m sleep_launch.local --processes 2 -- sleeptrain train rule110-tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=1, help="number of ranks (default 1)")
    parser.add_argument("--log-dir", help="folder for the logs of ranks 1 and up")
    parser.add_argument("--timeout", type=float, help="seconds after which all ranks are terminated")
    parser.add_argument("command", nargs="+", help="command to run, after --")
    args = parser.parse_args(argv)
    try:
        return run(args.command, args.processes, log_dir=args.log_dir, timeout=args.timeout)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
