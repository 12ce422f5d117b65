"""Stops ZeRO-3 from releasing a module's parameters when recomputation re-enters it during backward."""

from __future__ import annotations

from typing import Any


def keep_params_of_reentered_modules(engine: Any) -> None:
    """Makes the post-forward hook of a ZeRO-3 DeepSpeed engine skip modules whose backward is in progress.

    Without it (DeepSpeed 0.19.8): the backward of a module gathers its parameters. If its first saved tensor starts the
    recomputation of a pass, the module runs again in there, and the post-forward hook releases its parameters. Backward of a
    module that uses its parameters directly then fails with "The size of tensor a (0) must match the size of tensor b". This
    happens in every pass whose output features are unused, since backward then starts in the middle of the recomputed pass.
    """
    offload = engine.optimizer.parameter_offload
    in_backward = offload.get_param_coordinator()._PartitionedParameterCoordinator__active_backward_submodules
    release = offload.post_sub_module_forward_function

    def release_unless_in_backward(module: Any) -> None:
        if module.ds_id not in in_backward:
            release(module)

    offload.post_sub_module_forward_function = release_unless_in_backward
