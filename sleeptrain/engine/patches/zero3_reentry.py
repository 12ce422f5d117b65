"""Lets a module that ZeRO 3 has in backward be run again without losing its parameters."""

from __future__ import annotations

from typing import Any


def keep_in_backward(engine: Any) -> None:
    """For a DeepSpeed engine at stage 3.

    Without it (DeepSpeed 0.19.8): backward enters a module, which brings its parameters; the first tensor it asks for starts
    the recomputation of a pass; that runs the same module, and takes its parameters away when its forward is over. Where the
    module uses them itself, backward then ends in "The size of tensor a (0) must match the size of tensor b": so it is with
    every pass whose features nobody reads, since then backward begins in the middle of what is recomputed.
    """
    offload = engine.optimizer.parameter_offload
    in_backward = offload.get_param_coordinator()._PartitionedParameterCoordinator__active_backward_submodules
    release = offload.post_sub_module_forward_function

    def after_forward(module: Any) -> None:
        if module.ds_id not in in_backward:
            release(module)

    offload.post_sub_module_forward_function = after_forward
