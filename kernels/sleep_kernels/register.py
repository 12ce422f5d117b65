"""Registration of operators with torch.library: devices, fake implementation, autocast and autograd."""

from collections.abc import Callable
from typing import Any

import torch

# torch.library.Library rather than custom_op: a forward and backward of an empty operator take 55 instead of 69 microseconds,
# and windows can be as short as one token.
LIBRARY = torch.library.Library("sleep_kernels", "DEF")


def register_operator(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `sleep_kernels::name`, implemented by `kernel` on CPU and CUDA, and return the callable operator.

    schema: arguments and results in torch's schema language without the name, for instance "(Tensor x) -> Tensor".
    fake: the fake implementation for tracing; returns empty tensors of the results' shapes, dtypes and strides.
    Autocast is disabled inside the operator and casts none of its inputs, because kernels choose their own precision.
    """
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(torch.ops.sleep_kernels, name).default
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
        LIBRARY.impl(name, _outside_autocast(overload, device.lower()), f"Autocast{device}")
    torch.library.register_fake(f"sleep_kernels::{name}", fake, lib=LIBRARY)
    return overload


def register_backward(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the autograd formula of `sleep_kernels::name` (see torch.library.register_autograd)."""
    torch.library.register_autograd(f"sleep_kernels::{name}", backward, setup_context=setup, lib=LIBRARY)


def forbid_double_backward(name: str) -> None:
    """Make differentiation of the backward operator `sleep_kernels::name` raise RuntimeError."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"sleep_kernels::{name} has no second derivative; for double backward call gated_delta_rule with "
            "backend='reference', and write convolutions and norms in plain torch"
        )

    torch.library.register_autograd(f"sleep_kernels::{name}", backward, lib=LIBRARY)


def _outside_autocast(overload: Any, device: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return overload(*args)

    return call
