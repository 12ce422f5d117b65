"""Grouped-query attention over one window and the key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleeptrain.model.config import AttentionConfig as Config
from sleeptrain.model.config import rotary_dims
from sleeptrain.model.joint import SEPARATE
from sleeptrain.model.norm import RMSNorm
from sleeptrain.model.token_mask import TokenMask


@dataclass(frozen=True)
class KVCache:
    """Keys and values of past tokens."""

    key: Tensor
    """[batch, time, kv_heads, head_dim], rotary embedding applied."""
    value: Tensor
    """[batch, time, kv_heads, head_dim]."""
    seen: Tensor
    """[batch, time] bool, false at padding and at tokens of documents that have ended."""


class Attention(nn.Module):
    """Causal attention over at most `span` keys: per-head q/k RMSNorm, partial rotary embedding, output gate; norms and gate are options.

    The mixer of the dense Qwen3.5 text block (Hugging Face transformers, `qwen3_5`), with separate query and
    gate projections. `local`: of an L block, which sees `config.local` keys at most in place of `config.window`.
    """

    def __init__(self, width: int, config: Config, eps: float, local: bool = False) -> None:
        super().__init__()
        self.config, self.window = config, config.local if local else config.window
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(width, inner, bias=config.bias)
        self.k = nn.Linear(width, kv, bias=config.bias)
        self.v = nn.Linear(width, kv, bias=config.bias)
        self.gate = nn.Linear(width, inner, bias=False) if config.gate else None
        self.o = nn.Linear(inner, width, bias=False)
        self.q_norm: nn.Module = RMSNorm(config.head_dim, eps) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(config.head_dim, eps) if config.qk_norm else nn.Identity()

    @property
    def joint_layers(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The layers that may have a joint product."""
        m: Any = self._modules
        return ((m["q"], m["k"], m["v"], *([m["gate"]] if "gate" in m else [])),)

    def forward(
        self, x: Tensor, cache: KVCache | None, position0: int | Tensor, span: int, mask: TokenMask,
        joint: Sequence[Tensor | None] = SEPARATE.mixer,
    ) -> tuple[Tensor, KVCache]:  # fmt: skip
        """`x` [batch, time, width] -> (output [batch, time, width], the cache with this window appended).

        `position0`, a number or a tensor [] or [batch, 1], is the rotary position of the first token. Tokens attend to tokens of
        their own document that `mask` does not exclude. `joint`: the joint weights of `joint_layers`.
        """
        batch, time, _ = x.shape
        q, k, v, gate = self._projections(x, joint[0])
        q, k, v = self._heads(q, k, v, *rotary_cos_sin(position0, time, self.config, x))
        seen = torch.ones(batch, time, dtype=torch.bool, device=x.device) if mask.read is None else mask.read
        if cache is not None:
            before = cache.seen if mask.cached is None else cache.seen & mask.cached
            k, v, seen = torch.cat([cache.key, k], 1), torch.cat([cache.value, v], 1), torch.cat([before, seen], 1)
        document = None if mask.starts is None else key_documents(mask.document(), seen.shape[1])
        span = min(span, self.window or span)
        causal = cache is None and mask.valid is None and document is None and time <= span
        allowed = None if causal else attention_mask(time, seen, span, document)
        o = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=allowed, is_causal=causal,
            enable_gqa=self.config.heads != self.config.kv_heads,
        )  # fmt: skip
        o = o.transpose(1, 2).reshape(batch, time, -1)
        o = self.o(o if gate is None else o * torch.sigmoid(gate))
        return o, KVCache(k, v, seen if document is None else seen & (document == document[:, -1:]))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, time, heads, head_dim] of `x`, rotated by the result of `rotary_cos_sin`."""
        return self._heads(self.q(x), self.k(x), self.v(x), cos, sin)

    def output(self, o: Tensor, x: Tensor) -> Tensor:
        """The mixer's output from what the heads read [batch, time, heads * head_dim] and the mixer's input `x`."""
        return self.o(o if self.gate is None else o * torch.sigmoid(self.gate(x)))

    def _projections(self, x: Tensor, joint: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values and gate of `x`, side by side."""
        if joint is None:
            return self.q(x), self.k(x), self.v(x), None if self.gate is None else self.gate(x)
        inner, kv = (heads * self.config.head_dim for heads in (self.config.heads, self.config.kv_heads))
        q, k, v, *gate = F.linear(x, joint).split([inner, kv, kv] + [inner] * (self.gate is not None), 2)
        # A copy: a cache that keeps the values would keep the other projections with them.
        return q, k, v.contiguous(), gate[0] if gate else None

    def _heads(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads [batch, time, heads, head_dim] of projections [batch, time, heads * head_dim], q and k normed and rotated."""
        q, k, v = (y.unflatten(2, (-1, self.config.head_dim)) for y in (q, k, v))
        return apply_rotary(self.q_norm(q), cos, sin), apply_rotary(self.k_norm(k), cos, sin), v


def rotary_cos_sin(position0: int | Tensor, time: int, config: Config, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [time, 1, rotary dims] of the rotary embedding (arXiv 2104.09864), in float32 or float64.

    With `position0` [batch, 1] they are [batch, time, 1, rotary dims].
    """
    dims = rotary_dims(config)
    wide = torch.promote_types(like.dtype, torch.float32)
    frequency = config.theta ** (-torch.arange(0, dims, 2, dtype=wide, device=like.device) / max(dims, 1))
    # Exact below 2^24. With position0 in a tensor no shape or kernel depends on its value, as CUDA graphs require.
    angle = (torch.arange(time, dtype=wide, device=like.device) + position0)[..., None] * frequency
    angle = torch.cat([angle, angle], -1)[..., None, :]
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary dims of each head of `x` [batch, time, heads, head_dim]; the other dims are unchanged."""
    dims = cos.shape[-1]
    if dims == 0:
        return x
    rotary, rest = x[..., :dims], x[..., dims:]
    left, right = rotary.chunk(2, dim=-1)
    rotated = (rotary * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)
    return torch.cat([rotated, rest], -1) if rest.shape[-1] else rotated


def key_documents(document: Tensor, keys: int) -> Tensor:
    """The numbers of the documents of all keys [batch, keys], from those of the newest ones; cached keys are of document 0."""
    return F.pad(document, (keys - document.shape[1], 0))


def attention_mask(time: int, seen: Tensor, span: int, document: Tensor | None = None) -> Tensor:
    """The mask [batch, 1, time, keys] of the newest `time` queries, true where attention is allowed.

    A query attends to keys that are `seen` [batch, keys], not later than itself, among the newest `span`, and of the same
    `document` [batch, keys]. It always attends to itself: a row of padding alone would otherwise have an empty softmax.
    """
    keys = seen.shape[1]
    q = torch.arange(keys - time, keys, device=seen.device)[:, None]
    k = torch.arange(keys, device=seen.device)[None, :]
    band = (k <= q) & (q - k < span)
    allowed = band & seen[:, None, :]
    if document is not None:
        allowed = allowed & (document[:, -time:, None] == document[:, None, :])
    return (allowed | (q == k))[:, None]
