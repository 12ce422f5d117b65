"""Triton implementation of the gated delta rule as an operator, with fallback to `chunked`. Imports Triton lazily.

The backend is selected inside the operator, so that torch.compile sees one node without guards on versions and devices.
"""

from typing import Any

import torch
from torch import Tensor

from sleep_kernels import chunked, dispatch, verified
from sleep_kernels.common import RuleArguments
from sleep_kernels.verified import LaunchConfig


def select_config(q: Tensor, v: Tensor, *, verified_only: bool) -> LaunchConfig | None:
    """The launch configuration for these inputs, or None for `chunked`; each decision is logged once.

    verified_only: ignore configurations that have not been verified on a GPU.
    Raises ValueError for CPU tensors, unless Triton interprets (TRITON_INTERPRET=1 set before its first import).
    """
    if not q.is_cuda:
        return _interpreter_config(q, v)
    if not dispatch.fits_int32_offsets(q, v):
        return None
    if q.shape[1] == 1 and verified_only:  # decoding: a few small products are faster in plain torch
        return None
    d_k, d_v = q.shape[3], v.shape[3]
    return dispatch.config_for_gpu("gated_delta_rule", q.device, q.dtype, d_k, d_v, verified_only=verified_only)


def _interpreter_config(q: Tensor, v: Tensor) -> LaunchConfig | None:
    if not dispatch.is_interpreting():
        raise ValueError(
            "backend 'triton' needs tensors on a GPU; on a CPU choose 'chunked' or 'auto', or set TRITON_INTERPRET=1 "
            "before Triton is first imported to run the kernels slowly in its interpreter"
        )
    widths_fit = q.shape[3] in (16, 32, 64) and v.shape[3] in (16, 32, 64)
    return verified.interpreted() if widths_fit and q.dtype in (torch.float32, torch.bfloat16) else None


def forward(t: RuleArguments, verified_only: bool) -> tuple[Tensor, Tensor]:
    """Output and final state."""
    config = select_config(t.q, t.v, verified_only=verified_only)
    if config is None:
        return chunked.forward(t)
    from sleep_kernels import triton_gdr_forward

    with torch.cuda.device_of(t.q):
        return triton_gdr_forward.forward(t._replace(**_contiguous(t)), config)


def backward(
    grad_o: Tensor | None, grad_state: Tensor | None, t: RuleArguments, verified_only: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state. None for an output's gradient means zero."""
    config = select_config(t.q, t.v, verified_only=verified_only)
    if config is None:
        return chunked.backward(grad_o, grad_state, t)
    from sleep_kernels import triton_gdr_backward

    grad_o, grad_state = (None if d is None else d.contiguous() for d in (grad_o, grad_state))
    with torch.cuda.device_of(t.q):
        return triton_gdr_backward.backward(grad_o, grad_state, t._replace(**_contiguous(t)), config)


def _contiguous(t: RuleArguments) -> dict[str, Any]:
    """The tensors of `t` by name, contiguous."""
    return {name: value.contiguous() for name, value in t._asdict().items() if isinstance(value, Tensor)}
