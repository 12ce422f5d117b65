"""A Gated DeltaNet layer's operators for a single token in plain torch, without gradients: what decoding runs on a CPU.

The operators of longer windows are opaque to torch.compile, check their arguments and divide them into slices, which takes longer than
the computation of one token. Here everything is a few operations on small tensors, which a compiler can fuse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import compute_dtype
from sleep_kernels.torch_delta_inputs import inverse_norm, log_decay


def convolve_token(
    q: Tensor, k: Tensor, v: Tensor, weights: tuple[Tensor, Tensor, Tensor], tail: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The short convolution, SiLU and L2 norm of `delta_inputs` for one token that is not padding.

    q, k: [batch, 1, key_heads * d]; v: [batch, 1, value_heads * d]; weights: conv_q, conv_k and conv_v [channels, kernel];
    tail: [batch, kernel - 1, key_heads, (2 + r) * d], with value_heads = r * key_heads.
    Returns q and k [batch, key_heads, d] and v [batch, value_heads, d] in the dtype of the inputs, and the new tail.
    """
    batch, _, key_heads, channels = tail.shape
    d, dtype = q.shape[2] // key_heads, compute_dtype(q)
    token = torch.cat([x.view(batch, 1, key_heads, -1) for x in (q, k, v)], 3)
    read = torch.cat([tail, token], 1)
    taps = torch.cat([weight.view(key_heads, -1, weight.shape[1]) for weight in weights], 1).to(dtype)
    y = F.silu((read.to(dtype) * taps.permute(2, 0, 1)).sum(1))
    heads, value = y.split_with_sizes([2 * d, channels - 2 * d], 2)
    heads = heads.view(batch, key_heads, 2, d)
    heads = (heads * inverse_norm(heads)).to(q.dtype)
    return (
        heads[:, :, 0],
        heads[:, :, 1],
        value.reshape(batch, -1, d).to(q.dtype),
        read[:, 1:].clone(memory_format=torch.contiguous_format),
    )


def delta_rule_token(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor, Tensor, Tensor, Tensor], state: Tensor, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` for one token; results of `convolve_token`, and the gates a and b [batch, 1, value_heads], a_log, dt_bias.

    state: [batch, value_heads, d, d], which is not changed. Returns o [batch, value_heads, d] and the new state in its dtype.
    """
    (batch, heads, d), dtype, (a, b, a_log, dt_bias) = v.shape, state.dtype, gates
    rows = batch * heads
    if heads > q.shape[1]:
        q, k = (x.repeat_interleave(heads // q.shape[1], 1) for x in (q, k))
    query, key, value = (x.reshape(rows, 1, d).to(dtype) for x in (q, k, v))
    decay = log_decay(a.to(dtype), a_log, dt_bias).exp().view(rows, 1, 1)
    beta = torch.sigmoid(b.to(dtype)).view(rows, 1, 1)
    if strength != 1:
        beta = beta * strength
    new = state.reshape(rows, d, d) * decay
    update = torch.baddbmm(value, key, new, alpha=-1) * beta
    new.baddbmm_(key.mT, update)
    o = torch.bmm(query, new) * d**-0.5
    return o.view(batch, heads, d), new.view(state.shape)


def gated_norm_token(o: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`gated_rms_norm` of `o` [batch, heads, d] in the state's dtype; gate [batch, 1, heads * d], whose shape and dtype it returns."""
    normed = F.rms_norm(o, o.shape[-1:], weight.to(o.dtype), eps)
    return (normed * F.silu(gate.view(o.shape).to(o.dtype))).view(gate.shape).to(gate.dtype)
