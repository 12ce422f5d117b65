"""Suppresses DeepSpeed's log messages, prints and the deprecation warnings it causes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


def silence_deprecation_warnings() -> None:
    """Ignores torch's FutureWarnings about deprecated names of collectives, which DeepSpeed still calls.

    Without it (DeepSpeed 0.19.8 with torch 2.13): every ZeRO-3 step warns several times in every process.
    """
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


@contextlib.contextmanager
def deepspeed_quiet() -> Iterator[None]:
    """Disables log messages below errors, and redirects stdout, inside the block.

    Without it (DeepSpeed 0.19.8): the import warns about the accelerator, ZeRO warns about an "untested optimizer", and the
    bf16 optimizer calls `print`: memory reports while it is built, and a debugging line when it is loaded.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Imported before stdout is redirected: DeepSpeed's logger keeps the stdout of its import.
        import deepspeed  # noqa: F401

        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
