"""Gated DeltaNet: the mixer whose recurrent state is the model's fast weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_kernels import gated_delta_rule, gated_rms_norm, short_conv
from sleeptrain.model.config import DeltaNet as Config


class DeltaNet(nn.Module):
    """Gated DeltaNet (arXiv 2412.06464) as in the dense Qwen3.5 text block, its projections kept apart.

    q, k, v pass a short causal convolution and SiLU; q and k are L2-normed; each value head has a decay
    `exp(-exp(A_log) * softplus(a + dt_bias))` and a write strength `sigmoid(b)` per token; the output is RMS-normed per
    head and gated by SiLU(z).
    """

    def __init__(self, width: int, config: Config, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        self.backend = "auto"
        """What runs the operators (see `sleep_kernels`): `auto` or `chunked`; a run sets it before its first step."""
        keys, values = config.key_heads * config.head_dim, config.value_heads * config.head_dim
        self.q = nn.Linear(width, keys, bias=False)
        self.k = nn.Linear(width, keys, bias=False)
        self.v = nn.Linear(width, values, bias=False)
        self.z = nn.Linear(width, values, bias=False)
        self.b = nn.Linear(width, config.value_heads, bias=False)
        self.a = nn.Linear(width, config.value_heads, bias=False)
        self.o = nn.Linear(values, width, bias=False)
        self.conv_q = nn.Parameter(torch.empty(keys, config.conv))
        self.conv_k = nn.Parameter(torch.empty(keys, config.conv))
        self.conv_v = nn.Parameter(torch.empty(values, config.conv))
        self.A_log = nn.Parameter(torch.empty(config.value_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.value_heads))
        self.norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, x: Tensor, fast: Tensor, tail: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`x` [batch, time, width], S [batch, value_heads, d, d], tail [batch, taps-1, key_heads, channels]
        -> (output, new S, new tail). Where `valid` [batch, time] is false nothing is written."""
        batch, time, _ = x.shape
        heads, d = self.config.key_heads, self.config.head_dim
        mixed = self._by_head(self.q(x), self.k(x), self.v(x))
        y, tail = self._convolve(mixed, tail, valid)
        y = y.view(batch, time, heads, -1)
        q, k = l2_norm(y[..., :d]), l2_norm(y[..., d : 2 * d])
        v = y[..., 2 * d :].reshape(batch, time, -1, d)
        g, beta = self.decay(self.a(x)), torch.sigmoid(self.b(x))
        if self.config.negative_eigenvalues:
            beta = 2 * beta
        if valid is not None:
            g, beta = g * valid[..., None], beta * valid[..., None]
        o, fast = gated_delta_rule(q, k, v, g, beta, fast, backend=self.backend)
        z = self.z(x).view(batch, time, -1, d)
        o = gated_rms_norm(o, z, self.norm, self.eps)
        return self.o(o.reshape(batch, time, -1)), fast, tail

    def decay(self, a: Tensor) -> Tensor:
        """Log decay (<= 0) of each token and value head from the projection `a` [..., value_heads], at least float32."""
        wide = torch.promote_types(a.dtype, torch.float32)
        return -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias.to(wide))

    def _by_head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Lay the channels out head by head, q|k|v of a key head and its value heads together, so that the
        convolution's tail splits over key heads as S does. [batch, time, all channels]."""
        parts = [t.unflatten(-1, (self.config.key_heads, -1)) for t in (q, k, v)]
        return torch.cat(parts, -1).flatten(-2)

    def _convolve(self, x: Tensor, tail: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Short convolution with SiLU over the real tokens alone; the new tail is the last real inputs."""
        weight = torch.cat(
            [w.unflatten(0, (self.config.key_heads, -1)) for w in (self.conv_q, self.conv_k, self.conv_v)], 1
        )
        weight, shape = weight.flatten(0, 1), tail.shape
        if valid is None:
            y, tail = short_conv(x, weight, tail.flatten(2))
            return y, tail.view(shape)
        # Real inputs are moved to the right end, in order, so that each one's neighbours are the real ones before it.
        held = torch.cat([tail.flatten(2), x], 1)
        real = torch.cat([valid.new_ones(tail.shape[:2]), valid], 1)
        order = real.to(torch.uint8).argsort(dim=1, stable=True)[..., None]
        packed = held.take_along_dim(order, 1) * real.take_along_dim(order[..., 0], 1)[..., None]
        y, tail = short_conv(packed, weight, None)
        back = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        return back[:, shape[1] :], tail.view(shape)


def l2_norm(x: Tensor) -> Tensor:
    """`x / sqrt(sum(x^2) + 1e-6)` over the last dimension, computed in float32 at least, returned in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
