"""Signals in data workers: a stop request that reaches all processes of a job must not end the workers before the training process."""

from __future__ import annotations

import multiprocessing
import signal

from sleep_launch.parent import signal_at_parents_death

GRACE = 30.0
"""Seconds that a worker lives on after SIGTERM: SLURM signals all processes at once, and the main one saves first."""


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
