"""Recurrent gated delta rule, token by token through autograd: the reference for all other implementations."""

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over time with differentiable torch operations.

    Shapes, dtypes and equation as in `sleep_kernels.gated_delta_rule`. bf16 and fp16 inputs are computed in float32.
    Saved activations grow with time x d_k x d_v, so use it for checks and not for training.
    Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv 2412.06464.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, time, key_heads, d_k = q.shape
    value_heads, d_v = v.shape[2:]
    # Value heads i*r .. i*r+r-1 use key head i.
    group = value_heads // key_heads
    queries = q.to(dtype).repeat_interleave(group, dim=2)
    keys = k.to(dtype).repeat_interleave(group, dim=2)
    values, decay, beta = v.to(dtype), g.to(dtype).exp(), beta.to(dtype)
    state = q.new_zeros((batch, value_heads, d_k, d_v), dtype=dtype) if initial_state is None else initial_state.clone()
    outputs = []
    for t in range(time):
        state = state * decay[:, t, :, None, None]
        key = keys[:, t, :, :, None]
        retrieved = (key * state).sum(-2)
        update = beta[:, t, :, None] * (values[:, t] - retrieved)
        state = state + key * update[:, :, None, :]
        outputs.append(scale * (queries[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=1).to(v.dtype), state
