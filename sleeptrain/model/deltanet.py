"""The Gated DeltaNet mixer, whose recurrent state is the model's fast weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleep_kernels import (
    convolve_token,
    delta_inputs,
    delta_rule_token,
    dynamic_conv,
    gated_delta_rule,
    gated_norm_token,
    gated_rms_norm,
    inverse_norm,
    log_decay,
)
from sleeptrain.model.config import DeltaNetConfig as Config
from sleeptrain.model.joint import SEPARATE
from sleeptrain.model.token_mask import NO_MASK, TokenMask


class DeltaNet(nn.Module):
    """Gated DeltaNet (arXiv 2412.06464) as in the dense Qwen3.5 text block, with one matrix per projection.

    q, k, v pass a short causal convolution and SiLU; q and k are L2-normed; each value head has a decay
    `exp(-exp(A_log) * softplus(a + dt_bias))` and a write strength `sigmoid(b)` per token; the output is RMS-normed per
    head and gated by SiLU(z).

    With `config.generator` it is the mixer of Jet-Nemotron (arXiv 2508.15884): q and k pass SiLU alone, and v a convolution
    whose taps are `conv_v` plus those that the token generates, `generator_out(silu(generator_in(x)))`.
    """

    def __init__(self, width: int, config: Config, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, config.eps or eps
        self.backend = "auto"
        """The backend of the operators of `sleep_kernels`, `auto` or `chunked`; set before the first step of a run."""
        keys, values = config.key_heads * config.head_dim, config.value_heads * config.d_v
        self.q = nn.Linear(width, keys, bias=False)
        self.k = nn.Linear(width, keys, bias=False)
        self.v = nn.Linear(width, values, bias=False)
        self.z = nn.Linear(width, values, bias=False)
        self.b = nn.Linear(width, config.value_heads, bias=False)
        self.a = nn.Linear(width, config.value_heads, bias=False)
        self.o = nn.Linear(values, width, bias=False)
        if config.generator is None:
            self.conv_q = nn.Parameter(torch.empty(keys, config.conv))
            self.conv_k = nn.Parameter(torch.empty(keys, config.conv))
        else:
            self.generator_in = nn.Linear(width, config.generator, bias=False)
            self.generator_out = nn.Linear(config.generator, values * config.conv, bias=False)
        self.conv_v = nn.Parameter(torch.empty(values, config.conv))
        self.A_log = nn.Parameter(torch.empty(config.value_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.value_heads))
        self.norm = nn.Parameter(torch.ones(config.d_v))

    @property
    def joint_layers(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The layers that may have a joint product. z is not among them: its gradient and that of q, k and v come from different
        kernels, and to put them side by side would move more bytes than one product less. Nor are those of a dynamic convolution."""
        m: Any = self._modules
        return () if self.config.generator else ((m["q"], m["k"], m["v"]), (m["b"], m["a"]))

    def forward(
        self, x: Tensor, fast: Tensor, tail: Tensor, mask: TokenMask, joint: Sequence[Tensor | None] = SEPARATE.mixer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x` [batch, time, width], S [batch, value_heads, d_k, d_v], tail [batch, taps-1, key_heads, channels]
        -> (output, new S, new tail). Tokens that `mask` excludes write nothing to S and tail; documents begin with zeros.

        `joint`: the joint weights of `joint_layers`."""
        batch, time, _ = x.shape
        if self.config.generator:
            q, k, v, g, beta, tail = self._dynamic(x, tail, mask)
        else:
            q, k, v, g, beta, tail = self._convolved(x, tail, mask, *joint)
        o, fast = gated_delta_rule(q, k, v, g, beta, fast, resets=mask.starts is not None, backend=self.backend)
        o = gated_rms_norm(o, self.z(x).view(o.shape), self.norm, self.eps, backend=self.backend)
        return self.o(o.reshape(batch, time, -1)), fast, tail

    def token(
        self, x: Tensor, fast: Tensor, tail: Tensor, joint: Sequence[Tensor | None] = SEPARATE.mixer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of one token [batch, 1, width] that is not padding, without gradients; on a CPU in fewer operations."""
        if (
            x.is_cuda or self.config.generator is not None
        ):  # a GPU runs three kernels; dynamic convolution has no other path
            return self(x, fast, tail, NO_MASK, joint)
        q, k, v, tail = convolve_token(self.q(x), self.k(x), self.v(x), (self.conv_q, self.conv_k, self.conv_v), tail)
        gates = self.a(x), self.b(x), self.A_log, self.dt_bias
        o, fast = delta_rule_token(q, k, v, gates, fast, self._strength)
        return self.o(gated_norm_token(o, self.z(x), self.norm, self.eps)), fast, tail

    @property
    def _strength(self) -> float:
        return 2.0 if self.config.negative_eigenvalues else 1.0

    def _convolved(
        self, x: Tensor, tail: Tensor, mask: TokenMask, qkv: Tensor | None, ba: Tensor | None
    ) -> Sequence[Tensor]:
        """q, k, v, log decay, write strength and the new tail: q, k and v convolved with fixed taps."""
        options: dict[str, Any] = {
            "key_heads": self.config.key_heads,
            "strength": self._strength,
            "backend": self.backend,
        }
        weights = self.conv_q, self.conv_k, self.conv_v, self.A_log, self.dt_bias
        rest = *weights, tail, mask.read, mask.starts
        projected = torch.cat([self.q(x), self.k(x), self.v(x)], 2) if qkv is None else F.linear(x, qkv)
        gates = torch.cat([self.b(x), self.a(x)], 2) if ba is None else F.linear(x, ba)
        return delta_inputs(projected, gates, *rest, **options)

    def _dynamic(self, x: Tensor, tail: Tensor, mask: TokenMask) -> Sequence[Tensor]:
        """The same where v alone is convolved, with taps that depend on the token."""
        generated = self.generator_out(F.silu(self.generator_in(x)))
        v, new = dynamic_conv(
            self.v(x), generated.unflatten(2, self.conv_v.shape), self.conv_v, tail.flatten(2), mask.read, mask.starts
        )
        q, k = (_unit_heads(F.silu(y), self.config.head_dim) for y in (self.q(x), self.k(x)))
        g, b = self.decay(self.a(x)), self.b(x)
        beta = self._strength * torch.sigmoid(b.to(g.dtype))
        if mask.read is not None:
            padding = ~mask.read[..., None]
            g, beta = g.masked_fill(padding, 0), beta.masked_fill(padding, 0)
            q, k = q.masked_fill(padding[..., None], 0), k.masked_fill(padding[..., None], 0)
        if mask.starts is not None:
            g = g.masked_fill(mask.starts[..., None], -torch.inf)
        return q, k, v.unflatten(2, (-1, self.config.d_v)), g, beta, new.view(tail.shape)

    def decay(self, a: Tensor) -> Tensor:
        """Log decay (<= 0) of each token and value head from the projection `a` [..., value_heads], at least float32."""
        return log_decay(a, self.A_log, self.dt_bias)


def _unit_heads(y: Tensor, d: int) -> Tensor:
    """Heads [batch, time, heads, d] of `y`, L2-normed in float32 or float64 as `delta_inputs` does, in the dtype of y."""
    heads = y.unflatten(2, (-1, d)).to(torch.promote_types(y.dtype, torch.float32))
    return (heads * inverse_norm(heads)).to(y.dtype)
