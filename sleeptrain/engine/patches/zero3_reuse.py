"""Tells DeepSpeed's ZeRO 3 when all uses of the parameters of one backward are over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def uses_counted_by_backward(engine: Any) -> Callable[[], None]:
    """For a DeepSpeed engine at stage 3: what to call after every backward.

    Without it (DeepSpeed 0.19.8): ZeRO 3 learns the order in which parameters are used from one call of the root module's
    forward to the next, and here other parts of the model are called; so it never knows that a parameter will be used again,
    and gathers it anew for every pass. Also, its list of modules that are in forward keeps an entry for each one that a
    recomputation has left early, for ever: some 30 a step for two blocks.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    offload, depth = engine.optimizer.parameter_offload, len(FWD_MODULE_STACK)
    # It would begin to count anew in the middle, where somebody does call the root's.
    offload.fwd_pre_hook.remove()

    def over() -> None:
        offload.get_param_coordinator().reset_step()
        del FWD_MODULE_STACK[depth:]

    return over
