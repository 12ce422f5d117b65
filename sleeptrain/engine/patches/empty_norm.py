"""Lets a rank that has no gradient of its own take part in the norm of DeepSpeed's bf16 optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def allow_empty_norms(zero_optimizer: Any) -> None:
    """Makes the bf16 optimizer of ZeRO 1 count 0 on a rank whose gradients are all counted on others. Nothing for other optimizers.

    Without it (DeepSpeed 0.19.8): a gradient that several ranks hold is counted on the first of them. Where frozen weights leave a
    rank no other one, as with norms alone under tensor parallelism or a tied embedding alone in a pipeline, the rank fails with
    "stack expects a non-empty TensorList", and the others wait for it. The optimizer of ZeRO 1 in fp32 and of ZeRO 2 counts 0.
    """
    if not hasattr(zero_optimizer, "get_grads_for_norm"):
        return
    original = zero_optimizer.get_grads_for_norm

    def gradients(for_clipping: bool = False) -> Any:
        found = original(for_clipping=for_clipping)
        if for_clipping or found[0]:
            return found
        flat: Tensor = zero_optimizer.fp32_groups_gradients_flat[0]
        return [torch.zeros(1, device=flat.device)], found[1]

    zero_optimizer.get_grads_for_norm = gradients
