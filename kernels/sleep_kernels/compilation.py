"""Compilation of kernels that a signal to all processes of a job does not end.

Schedulers send SIGTERM to every process of a job, also to the assembler that Triton has started. Triton then raises PTXASError
(error code -15), and a training that could have saved ends. A program inherits the signals that its parent blocks.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""What schedulers, terminals and launchers send to all processes of a job."""


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals that ask to stop wait until the block ends, for this thread and for programs that it starts in the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit(**options)` of a kernel that is launched from Python, with signals blocked while it is compiled."""

    def decorate(function: Callable[..., Any]) -> Any:
        jitted = triton.jit(**options)(function)
        compiles = getattr(jitted, "_do_compile", None)
        if compiles is not None:  # Triton's interpreter compiles nothing

            @functools.wraps(compiles)
            def shielded(*arguments: Any, **named: Any) -> Any:
                with signals_blocked():
                    return compiles(*arguments, **named)

            jitted._do_compile = shielded
        return jitted

    return decorate
