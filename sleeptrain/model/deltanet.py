"""The Gated DeltaNet mixer, whose recurrent state is the model's fast weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sleep_kernels import (
    convolve_token,
    delta_inputs,
    delta_rule_token,
    gated_delta_rule,
    gated_norm_token,
    gated_rms_norm,
    log_decay,
)
from sleeptrain.model.config import DeltaNetConfig as Config
from sleeptrain.model.token_mask import NO_MASK, TokenMask


class DeltaNet(nn.Module):
    """Gated DeltaNet (arXiv 2412.06464) as in the dense Qwen3.5 text block, with one matrix per projection.

    q, k, v pass a short causal convolution and SiLU; q and k are L2-normed; each value head has a decay
    `exp(-exp(A_log) * softplus(a + dt_bias))` and a write strength `sigmoid(b)` per token; the output is RMS-normed per
    head and gated by SiLU(z).
    """

    def __init__(self, width: int, config: Config, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        self.backend = "auto"
        """The backend of the operators of `sleep_kernels`, `auto` or `chunked`; set before the first step of a run."""
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

    def forward(self, x: Tensor, fast: Tensor, tail: Tensor, mask: TokenMask) -> tuple[Tensor, Tensor, Tensor]:
        """`x` [batch, time, width], S [batch, value_heads, d, d], tail [batch, taps-1, key_heads, channels]
        -> (output, new S, new tail). Tokens that `mask` excludes write nothing to S and tail; documents begin with zeros."""
        batch, time, _ = x.shape
        q, k, v, g, beta, tail = delta_inputs(
            self.q(x), self.k(x), self.v(x), self.a(x), self.b(x), self.conv_q, self.conv_k, self.conv_v,
            self.A_log, self.dt_bias, tail, mask.valid, mask.starts, key_heads=self.config.key_heads,
            strength=2.0 if self.config.negative_eigenvalues else 1.0, backend=self.backend,
        )  # fmt: skip
        o, fast = gated_delta_rule(q, k, v, g, beta, fast, resets=mask.starts is not None, backend=self.backend)
        o = gated_rms_norm(o, self.z(x).view(o.shape), self.norm, self.eps, backend=self.backend)
        return self.o(o.reshape(batch, time, -1)), fast, tail

    def token(self, x: Tensor, fast: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of one token [batch, 1, width] that is not padding, without gradients; on a CPU in fewer operations."""
        if x.is_cuda:  # three kernels
            return self(x, fast, tail, NO_MASK)
        q, k, v, tail = convolve_token(self.q(x), self.k(x), self.v(x), (self.conv_q, self.conv_k, self.conv_v), tail)
        gates = self.a(x), self.b(x), self.A_log, self.dt_bias
        o, fast = delta_rule_token(q, k, v, gates, fast, 2.0 if self.config.negative_eigenvalues else 1.0)
        return self.o(gated_norm_token(o, self.z(x), self.norm, self.eps)), fast, tail

    def decay(self, a: Tensor) -> Tensor:
        """Log decay (<= 0) of each token and value head from the projection `a` [..., value_heads], at least float32."""
        return log_decay(a, self.A_log, self.dt_bias)
