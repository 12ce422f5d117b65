"""Imports megatron-core without its warnings about optional libraries."""

from __future__ import annotations

import logging
import warnings


def import_megatron() -> None:
    """Imports `megatron.core.tensor_parallel` with warnings off. Call before any other import of megatron-core.

    Without it (megatron-core 0.16.1): every process warns eight times that Transformer Engine and Apex are not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import megatron.core.tensor_parallel  # noqa: F401
    finally:
        logging.disable(before)
