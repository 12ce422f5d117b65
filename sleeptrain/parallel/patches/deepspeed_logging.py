"""Keeps DeepSpeed's own narration off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


def silence_deprecations() -> None:
    """Drops torch's warnings about names of collectives that it is giving up.

    Without it (DeepSpeed 0.19.8 with torch 2.13) every step of ZeRO 3 warns, several times, in every process.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


@contextlib.contextmanager
def deepspeed_quiet() -> Iterator[None]:
    """Nothing below an error is logged inside, and nothing printed.

    Without it (DeepSpeed 0.19.8): importing warns about the accelerator, ZeRO warns about an "untested optimizer", and the
    bf16 optimizer prints memory reports while it is built and a debugging line when it is loaded, with plain `print`.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Imported before stdout is redirected: DeepSpeed's logger keeps the stdout it finds on import for good.
        import deepspeed  # noqa: F401

        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
