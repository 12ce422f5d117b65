"""The gated delta rule in Triton as a torch operator, and the choice between it and `chunked`. Imports Triton when used.

The choice is made inside the operator, so that torch.compile sees one node and no question about versions.
"""

from typing import Any

import torch
from torch import Tensor

from sleep_kernels import choice, chunked, verified
from sleep_kernels.verified import Plan


def choose(q: Tensor, v: Tensor, *, verified_only: bool) -> Plan | None:
    """The launches for these inputs, or None for `chunked`; each answer and its reason are logged once.

    verified_only: a plan that no GPU has verified yet does not count.
    Raises ValueError for tensors on a CPU, unless Triton interprets (TRITON_INTERPRET=1 before its first import).
    """
    if not q.is_cuda:
        return _choose_on_cpu(q, v)
    if not choice.addressable(q, v):
        return None
    if q.shape[1] == 1 and verified_only:  # decoding: one token is a few small products
        return None
    return choice.for_gpu("gated_delta_rule", q.device, q.dtype, q.shape[3], v.shape[3], verified_only=verified_only)


def _choose_on_cpu(q: Tensor, v: Tensor) -> Plan | None:
    if not choice.interpreting():
        raise ValueError(
            "backend 'triton' needs tensors on a GPU; on a CPU choose 'chunked' or 'auto', or set TRITON_INTERPRET=1 "
            "before Triton is first imported to run the kernels slowly in its interpreter"
        )
    widths_fit = q.shape[3] in (16, 32, 64) and v.shape[3] in (16, 32, 64)
    return verified.interpreted() if widths_fit and q.dtype in (torch.float32, torch.bfloat16) else None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    scale: float,
    verified_only: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs and final state; arguments as in `sleep_kernels.gated_delta_rule`, already checked."""
    plan = choose(q, v, verified_only=verified_only)
    if plan is None:
        return chunked.forward(q, k, v, g, beta, initial_state, scale)
    from sleep_kernels import triton_gdr_forward

    q, k, v, g, beta, initial_state = _contiguous(q, k, v, g, beta, initial_state)
    with torch.cuda.device_of(q):
        return triton_gdr_forward.forward(q, k, v, g, beta, initial_state, scale, plan)


def backward(
    grad_o: Tensor | None,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    scale: float,
    verified_only: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state, from those of the outputs (None means zero)."""
    plan = choose(q, v, verified_only=verified_only)
    if plan is None:
        return chunked.backward(grad_o, grad_state, q, k, v, g, beta, initial_state, scale)
    from sleep_kernels import triton_gdr_backward

    grad_o, grad_state = _contiguous(grad_o, grad_state)
    q, k, v, g, beta, initial_state = _contiguous(q, k, v, g, beta, initial_state)
    with torch.cuda.device_of(q):
        return triton_gdr_backward.backward(grad_o, grad_state, q, k, v, g, beta, initial_state, scale, plan)


def _contiguous(*tensors: Tensor | None) -> Any:
    return [None if t is None else t.contiguous() for t in tensors]
