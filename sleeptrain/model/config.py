"""The `model:` section: block sizes and layer pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sleeptrain.config import Problem


@dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention: per-head q/k RMSNorm, rotary positions on a fraction of each head, output gate."""

    heads: int = 8
    """Heads of queries; a multiple of kv_heads."""
    kv_heads: int = 2
    """Heads of keys and values."""
    head_dim: int = 64
    """Size of a head's queries, keys and values."""
    rotary: float = 0.25
    """Fraction of each head's dimensions that is rotated."""
    theta: float = 10000.0
    """Base of the rotary wavelengths."""
    gate: bool = True
    """Sigmoid gate on the output, with its own projection."""
    qk_norm: bool = True
    """RMSNorm on the queries and the keys of each head. Models without it cannot be exported."""
    window: int | None = None
    """Number of keys that a query of an A block sees at most; null: the whole context window."""
    local: int | None = None
    """Number of keys that a query of an L block (local attention) sees at most. L blocks need it."""
    bias: bool = False
    """The projections to q, k and v have a bias. Such models cannot be exported."""


@dataclass(frozen=True)
class DeltaNetConfig:
    """Gated DeltaNet; its state is `value_heads` matrices [head_dim, value_dim] per layer."""

    key_heads: int = 4
    """Heads of queries and keys."""
    value_heads: int = 4
    """A multiple of key_heads; more value heads per key head widen the state."""
    head_dim: int = 64
    """Size of a head's queries and keys, and of its values unless value_dim says otherwise."""
    conv: int = 4
    """Taps of the short convolution on q, k and v."""
    horizon: int | None = None
    """Half-life at initialisation of the slowest head, in tokens summed over passes; null: twice the tokens that all
    passes write over a sample, or a row of text."""
    negative_eigenvalues: bool = False
    """Write strengths up to 2 (arXiv 2411.12537). Such models cannot be exported."""
    generator: int | None = None
    """Dynamic convolution, as in Jet-Nemotron (arXiv 2508.15884): only v is convolved, and every token adds taps of its own, which an
    MLP with this hidden size computes from the block's input. null: fixed taps. Such models cannot be exported."""
    value_dim: int | None = None
    """Size of a head's values under dynamic convolution; null: head_dim. Others than head_dim cannot be exported."""
    eps: float | None = None
    """`eps` of the gated norm of a head's output; null: model.eps. Others than model.eps cannot be exported."""

    @property
    def d_v(self) -> int:
        """Size of a head's values."""
        return self.value_dim or self.head_dim


@dataclass(frozen=True)
class MlpConfig:
    """The SwiGLU MLP."""

    hidden: int = 1024
    """Size between the projections, as in two matrices [width, hidden] and one [hidden, width]."""


@dataclass(frozen=True)
class Model:
    """A stack of blocks: attention (A), attention to the newest keys alone (L, local), and Gated DeltaNet (G)."""

    width: int = 256
    """Features of a token between the blocks."""
    layers: str = "AGAG"
    """One letter per block, with repeated groups: `AGAG`, `(GGGA)x8`, `GGLGGA`."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    deltanet: DeltaNetConfig = field(default_factory=DeltaNetConfig)
    mlp: MlpConfig = field(default_factory=MlpConfig)
    vocab: int | None = None
    """Rows of the embedding; null: the vocabulary size of the data's manifest."""
    tie: bool = True
    """Embedding and head share one matrix."""
    norm: Literal["pre", "sandwich"] = "pre"
    """`sandwich` also norms the output of each branch (as Ouro does). Such models cannot be exported."""
    residual_scale: float = 1.0
    """Factor of the output of every branch (mixer and MLP) before it is added to the features. With about
    (2 * blocks * passes)^-0.75 the gradient of a deep stack with several passes does not explode at the start; see
    docs/depth.md. It is a part of the model: it changes inference, too."""
    eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    init_std: float = 0.02
    """Standard deviation of the initial matrices."""

    @property
    def pattern(self) -> str:
        """One letter per block, with groups expanded."""
        return expand(self.layers)

    @property
    def reaches(self) -> tuple[int | None, int | None]:
        """The number of keys that a query of A and of L blocks sees at most; None: those of the context window."""
        return self.attention.window, self.attention.local

    def problems(self) -> list[Problem]:
        """All invalid values of this section."""
        return list(self._problems())

    def _problems(self) -> Iterator[Problem]:
        sizes = {
            "width": self.width, "attention.heads": self.attention.heads, "attention.kv_heads": self.attention.kv_heads,
            "attention.head_dim": self.attention.head_dim, "deltanet.key_heads": self.deltanet.key_heads,
            "deltanet.value_heads": self.deltanet.value_heads, "deltanet.head_dim": self.deltanet.head_dim,
            "deltanet.conv": self.deltanet.conv, "mlp.hidden": self.mlp.hidden,
        }  # fmt: skip
        yield from (Problem(name, "must be at least 1") for name, size in sizes.items() if size < 1)
        if self.vocab is not None and self.vocab < 1:
            yield Problem("vocab", "must be at least 1, or null to take the data's")
        try:
            expand(self.layers)
        except ValueError as error:
            yield Problem("layers", str(error))
        if self.attention.kv_heads >= 1 and self.attention.heads % self.attention.kv_heads:
            yield Problem("attention.heads", f"must be a multiple of attention.kv_heads = {self.attention.kv_heads}")
        if self.deltanet.key_heads >= 1 and self.deltanet.value_heads % self.deltanet.key_heads:
            yield Problem(
                "deltanet.value_heads", f"must be a multiple of deltanet.key_heads = {self.deltanet.key_heads}"
            )
        if not 0 <= self.attention.rotary <= 1 or rotary_dims(self.attention) % 2:
            yield Problem("attention.rotary", "must rotate an even number of dimensions between 0 and head_dim")
        if self.attention.window is not None and self.attention.window < 1:
            yield Problem("attention.window", "must be at least 1 key, or null")
        if self.attention.local is not None and self.attention.local < 1:
            yield Problem("attention.local", "must be at least 1 key, or null")
        if self.attention.local is None and "L" in self.layers:
            yield Problem("attention.local", "must be the number of keys that a query of the L blocks in layers sees")
        yield from self._dynamic_problems()
        if self.deltanet.horizon is not None and self.deltanet.horizon < 1:
            yield Problem("deltanet.horizon", "must be at least 1 token, or null")
        positive = {
            "residual_scale": self.residual_scale, "init_std": self.init_std, "eps": self.eps, "attention.theta": self.attention.theta,
        }  # fmt: skip
        yield from (Problem(name, "must be above 0") for name, value in positive.items() if not value > 0)

    def _dynamic_problems(self) -> Iterator[Problem]:
        """Invalid values of the dynamic convolution."""
        g = self.deltanet
        for name in ("generator", "value_dim"):
            if getattr(g, name) is not None and getattr(g, name) < 1:
                yield Problem(f"deltanet.{name}", "must be at least 1, or null")
        if g.generator is None and g.d_v != g.head_dim:
            yield Problem(
                "deltanet.value_dim",
                "must be head_dim or null without deltanet.generator: the convolution of q, k and v "
                "takes heads of one size",
            )
        if g.eps is not None and g.eps <= 0:
            yield Problem("deltanet.eps", "must be above 0, or null for model.eps")


def rotary_dims(attention: AttentionConfig) -> int:
    """Number of rotated dimensions per head."""
    return int(attention.head_dim * attention.rotary)


def expand(layers: str) -> str:
    """Expand a layer pattern: `"(GGGA)x2"` -> `"GGGAGGGA"`.

    Raises ValueError for a pattern with anything but A, L, G and groups `(...)xN`.
    """
    text = re.sub(r"\s", "", layers)
    while group := re.search(r"\(([ALG]+)\)x(\d+)", text):
        text = text[: group.start()] + group[1] * int(group[2]) + text[group.end() :]
    if not text or set(text) - {"A", "L", "G"}:
        raise ValueError(
            "must be made of A (attention), L (local attention) and G (Gated DeltaNet), with groups such as (GGGA)x8"
        )
    return text
