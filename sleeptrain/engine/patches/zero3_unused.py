"""Clears the gradients of ZeRO-3 between steps, so that weights that a step does not use have a gradient of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def clear_unused_gradients(engine: Any) -> Callable[[], None]:
    """The function to call before every backward of a ZeRO-3 DeepSpeed engine.

    Without it (DeepSpeed 0.19.8): the first backward of a step overwrites the gradients of the weights that it uses. Another
    weight keeps the gradient of the last step that used it and is updated with it again, or has it added to that of a later
    micro-batch. Such steps are those with one pass under `feedback: gated`.
    """
    optimizer = engine.optimizer

    def clear() -> None:
        if optimizer.micro_step_id == 0:
            optimizer.grad_partitions_flat_buffer.zero_()

    return clear
