"""The gradient buffers of DeepSpeed's bf16 optimizer, to which an executor may add gradients itself.

ZeRO 1 in bf16 holds a whole float32 gradient, which it reduces and steps from, and adds the bf16 `.grad` of every parameter to it
after a backward. An executor that sums the uses of a weight in float32 would hold two more gradients beside it, its own sum and
the bf16 `.grad`: 10 bytes a parameter instead of 4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def grad_buffers(zero_optimizer: Any) -> dict[Tensor, Tensor]:
    """By parameter, the view of its shape in the float32 gradient that DeepSpeed 0.19.8 reduces; empty where there is none.

    Their addresses never change, and they are zero after every step. Under ZeRO 2, and in fp32, DeepSpeed allocates
    gradients anew in every step.
    """
    if not hasattr(zero_optimizer, "fp32_groups_gradients"):
        return {}
    return {
        parameter: gradient.view(parameter.shape)
        for parameters, gradients in zip(zero_optimizer.bf16_groups, zero_optimizer.fp32_groups_gradients, strict=True)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    }


def mark_as_filled(zero_optimizer: Any) -> None:
    """Make DeepSpeed count all buffers in the norm: it leaves out those that it did not add a `.grad` to itself."""
    for filled in getattr(zero_optimizer, "fp32_groups_has_gradients", ()):
        filled[:] = [True] * len(filled)
