"""Heartbeats of all ranks of a run: which rank does not run, which is where, and the stacks of ranks that wait.

A rank that is stopped cannot report itself, and the others only see that no message comes. So every rank writes where it stands
into a file of the run folder, from a thread, and says what the files of the others show when its own step takes long.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Any

HEARTBEATS = "heartbeats"
"""Folder in the run folder: `rank-00000.json` while the rank runs, and `rank-00000.stacks` once a step took long, for good."""
LONGEST_INTERVAL = 30.0
"""Seconds between two heartbeats at most; there are at least twenty in `timeout`."""


class Watchdog:
    """Heartbeat of this rank, as a context manager. A run of one process has none: nobody waits for it.

    timeout   seconds after which the backend gives up waiting for a rank. After half of it without `beat`, all stacks of this
              process are dumped by a timer in C, which also works where Python's global lock is held, and rank 0, or rank 1 if
              rank 0 does not run, prints a warning.
    """

    def __init__(self, folder: Path, rank: int, world: int, timeout: float) -> None:
        self._folder, self._rank, self._world, self._timeout = folder / HEARTBEATS, rank, world, timeout
        self._interval = min(LONGEST_INTERVAL, timeout / 20)
        self._step, self._phase, self._since = 0, "starting", monotonic()
        self._told: tuple[int, str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._stacks: IO[str] | None = None

    def __enter__(self) -> Watchdog:
        if self._world > 1:
            self._folder.mkdir(exist_ok=True)
            self._stacks = self._file("stacks").open("a")  # those of a run that hung before stay
            self._write()
            self.beat(0, "starting")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._ended.set()
        self._thread.join()
        self._stacks.close()
        self._stacks = None
        for suffix in ("json", "stacks"):
            path = self._file(suffix)
            with suppress(OSError):
                if suffix == "json" or not path.stat().st_size:
                    path.unlink()
        with suppress(OSError):  # the last rank removes the folder; stacks stay
            self._folder.rmdir()

    def beat(self, step: int, phase: str) -> None:
        """This rank is now at `phase` of `step`, such as "reading data"."""
        self._step, self._phase, self._since = step, phase, monotonic()
        if self._stacks is not None:
            faulthandler.dump_traceback_later(self._timeout / 2, file=self._stacks)

    def describe(self) -> str:
        """What the heartbeats show: which ranks do not run, and where the others are if they are not all at one place; else empty."""
        if self._world == 1:
            return ""
        running, texts = dict[str, list[int]](), list[str]()
        for rank in range(self._world):
            if self._is_running(rank):
                running.setdefault(self._read(rank) or "unknown", []).append(rank)
            else:
                texts.append(self._lost(rank))
        if texts or len(running) > 1:
            texts += [f"rank{'s' * (len(ranks) > 1)} {_ranges(ranks)}: {where}" for where, ranks in running.items()]
        return "; ".join(texts)

    def lost(self) -> str:
        """The ranks that have not run for `timeout`, as `describe` names them; empty if there are none."""
        if self._stacks is None:
            return ""
        return "; ".join(self._lost(rank) for rank in range(self._world) if not self._is_running(rank, self._timeout))

    def _lost(self, rank: int) -> str:
        where = self._read(rank)
        return f"rank {rank} does not run{f' (it was last {where})' if where else ''}"

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            with suppress(OSError):  # a full disk must not end the thread
                self._write()
            late, place = monotonic() - self._since, (self._step, self._phase)
            if late > self._timeout / 2 and self._told != place and self._speaks():
                self._told = place
                print(self._warning(late), file=sys.stderr, flush=True)

    def _speaks(self) -> bool:
        return self._rank == 0 or (self._rank == 1 and not self._is_running(0))

    def _warning(self, late: float) -> str:
        found = self.describe() or f"all ranks: {self._where()}"
        return (
            f"warning: step {self._step} has been {self._phase} for {late:.0f} s. {found}. Stacks are in {self._folder}. A rank that "
            f"waits for another longer than mesh.timeout = {self._timeout:.0f} s ends the run"
        )

    def _where(self) -> str:
        return f"{self._phase}, step {self._step}"

    def _write(self) -> None:
        path = self._file("json")
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps({"where": self._where(), "pid": os.getpid()}))
        staged.replace(path)

    def _read(self, rank: int) -> str | None:
        """Where a rank was at its last heartbeat; of this rank, now. None without a file: it never began, or ended."""
        if rank == self._rank:
            return self._where()
        try:
            body: dict[str, Any] = json.loads(self._file("json", rank).read_text())
        except (OSError, ValueError):
            return None
        return str(body["where"])

    def _is_running(self, rank: int, age: float | None = None) -> bool:
        """Whether the last heartbeat of a rank is at most `age` seconds older than that of this one; None: four intervals.

        Times are those of the file system, so clocks need not agree, and a file system that hangs for all accuses nobody.
        """
        try:
            times = [self._file("json", other).stat().st_mtime for other in (self._rank, rank)]
        except OSError:
            return False
        return times[0] - times[1] <= (4 * self._interval if age is None else age)

    def _file(self, suffix: str, rank: int | None = None) -> Path:
        return self._folder / f"rank-{self._rank if rank is None else rank:05d}.{suffix}"


def _ranges(ranks: list[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
