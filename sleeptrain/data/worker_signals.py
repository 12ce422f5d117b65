"""Signals in helper processes: a stop request that reaches all processes of a job must not end them before the training process."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import resource_tracker

from sleep_launch.parent import signal_at_parents_death

GRACE = 30.0
"""Seconds that a worker lives on after SIGTERM: SLURM signals all processes at once, and the main one saves first."""


REQUESTS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to stop, beside SIGINT and SIGTERM, which Python's resource tracker ignores by itself."""


def start_resource_tracker() -> None:
    """Start the process in which Python registers shared memory, if it does not run, with signals blocked that ask a run to stop.

    SLURM sends SIGUSR1 to all processes of a step. It would end the tracker, and the one that Python then starts prints a stack
    trace for every block of shared memory that it does not know. A process inherits the blocked signals of its parent.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def delay_signals(worker: int) -> None:
    """Makes a worker ignore or delay signals: one that is sent to all processes of a job must not end the workers first.

    When the training process is gone, however it ended, the worker is killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        signal_at_parents_death(signal.SIGKILL, parent.pid)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
