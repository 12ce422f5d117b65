"""Ties the life of a child process to that of its parent. As a program, it becomes another one that is tied so:

python parent.py SIGNAL PARENT COMMAND ...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def signal_at_parents_death(number: signal.Signals, parent: int) -> None:
    """Ask Linux to send this process `number` when `parent`, which has just started it, ends. Elsewhere it does nothing.

    Linux means the thread that started the process. A parent that has ended already is noticed, too.
    """
    if not hasattr(ctypes, "CDLL") or os.uname().sysname != "Linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    signal_at_parents_death(signal.Signals(int(sys.argv[1])), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
