"""Ties the life of a child process to that of its parent.

`python parent.py SIGNAL PARENT COMMAND ...` becomes COMMAND, tied so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def signal_at_parents_death(number: signal.Signals, parent: int) -> None:
    """Ask Linux to send this process `number` when the thread of `parent` that has just started it ends. Elsewhere it does nothing.

    A parent that has ended already is noticed, too.
    """
    if os.uname().sysname != "Linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    signal_at_parents_death(signal.Signals(int(sys.argv[1])), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
