"""The tensors of the dense Qwen3.5 text model (`qwen3_5_text` of transformers), and the parameters of ours that each holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.program import Sleep


@dataclass(frozen=True)
class MappedTensor:
    """One tensor of theirs, made of parameters of ours."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    """The names of ours."""
    join: Callable[[Sequence[Tensor]], Tensor]
    """Theirs from ours, in the order of `parameters`."""
    split: Callable[[Tensor], Sequence[Tensor]]
    """The inverse of `join`. ValueError where theirs is no value of it."""
    float32: bool = False
    """Stored in float32 where the others are bfloat16: norms and decay rates."""


def mapped_tensors(model: Model) -> list[MappedTensor]:
    """All tensors of a model in the order of its layers. Every parameter is in exactly one of them.

    `model.residual_scale` and a missing attention gate are folded into the output projections, which changes no result beyond
    rounding: sigmoid(0) is 1/2, so gate rows of zeros go with twice the projection.
    """
    assert model.vocab is not None
    mapped = [same("model.embed_tokens.weight", "embed.weight", (model.vocab, model.width))]
    for layer, letter in enumerate(model.pattern):
        mapped += _block(model, layer, letter)
    mapped.append(same("model.norm.weight", "norm.weight", (model.width,), float32=True))
    if not model.tie:
        mapped.append(same("lm_head.weight", "head.weight", (model.vocab, model.width)))
    return mapped


def obstacles(model: Model, sleep: Sleep) -> Iterator[tuple[str, str]]:
    """What of a model `qwen3_5_text` cannot express: the field of the recipe, and why."""
    if model.norm == "sandwich":
        yield "model.norm", "its blocks do not norm the output of a branch"
    if "G" in model.pattern and model.deltanet.negative_eigenvalues:
        yield "model.deltanet.negative_eigenvalues", "its write strengths are at most 1"
    if "A" in model.pattern and model.attention.window is not None and model.attention.window < sleep.window:
        yield "model.attention.window", "its attention sees all keys of a window"
    if "L" in model.pattern:
        yield "model.layers", "it has no blocks of local attention (L)"
    if set(model.pattern) & {"A", "L"} and model.attention.bias:
        yield "model.attention.bias", "its projections have no biases"
    if set(model.pattern) & {"A", "L"} and not model.attention.qk_norm:
        yield "model.attention.qk_norm", "its attention norms queries and keys"
    if "G" in model.pattern:
        yield from _deltanet_obstacles(model)


def _deltanet_obstacles(model: Model) -> Iterator[tuple[str, str]]:
    g = model.deltanet
    if g.generator is not None:
        yield "model.deltanet.generator", "the taps of its convolution are fixed"
    if g.d_v != g.head_dim:
        yield "model.deltanet.value_dim", "its engines take keys and values of one size"
    if g.eps not in (None, model.eps):
        yield "model.deltanet.eps", f"all of its norms have the same eps, here model.eps = {model.eps}"


def _block(model: Model, layer: int, letter: str) -> Iterator[MappedTensor]:
    ours, theirs, width = f"layers.{layer}", f"model.layers.{layer}", model.width
    yield same(f"{theirs}.input_layernorm.weight", f"{ours}.norm1.weight", (width,), float32=True)
    yield from (_deltanet if letter == "G" else _attention)(model, f"{ours}.mixer", theirs)
    yield same(f"{theirs}.post_attention_layernorm.weight", f"{ours}.norm2.weight", (width,), float32=True)
    for name in ("gate", "up"):
        yield same(f"{theirs}.mlp.{name}_proj.weight", f"{ours}.mlp.{name}.weight", (model.mlp.hidden, width))
    down = (width, model.mlp.hidden)
    yield _scaled(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.down.weight", down, model.residual_scale)


def _attention(model: Model, ours: str, theirs: str) -> Iterator[MappedTensor]:
    a, width, base = model.attention, model.width, f"{theirs}.self_attn"
    inner, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shape = (2 * inner, width)
    if a.gate:
        parameters = (f"{ours}.q.weight", f"{ours}.gate.weight")

        def split(tensor: Tensor) -> Sequence[Tensor]:
            pairs = tensor.view(a.heads, 2, a.head_dim, width)
            return [pairs[:, i].reshape(inner, width) for i in range(2)]

        def join(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack([part.view(a.heads, a.head_dim, width) for part in parts], 1).view(shape)

        yield MappedTensor(f"{base}.q_proj.weight", shape, parameters, join, split)
    else:
        yield _without_gate(f"{base}.q_proj.weight", f"{ours}.q.weight", a.heads, (inner, width))
    for name in ("k", "v"):
        yield same(f"{base}.{name}_proj.weight", f"{ours}.{name}.weight", (kv, width))
    scale = model.residual_scale * (1 if a.gate else 2)
    yield _scaled(f"{base}.o_proj.weight", f"{ours}.o.weight", (width, inner), scale)
    for name in ("q_norm", "k_norm"):
        yield same(f"{base}.{name}.weight", f"{ours}.{name}.weight", (a.head_dim,), float32=True)


def _without_gate(name: str, ours: str, heads: int, shape: tuple[int, int]) -> MappedTensor:
    """q_proj of attention without an output gate: the rows of each head, then as many rows of zeros."""
    inner, width = shape

    def join(parts: Sequence[Tensor]) -> Tensor:
        q = parts[0].view(heads, -1, width)
        return torch.cat([q, torch.zeros_like(q)], 1).view(2 * inner, width)

    def split(tensor: Tensor) -> Sequence[Tensor]:
        q, gate = tensor.view(heads, 2, -1, width).unbind(1)
        if gate.any():
            raise ValueError("its gate is not zero, and the recipe has model.attention.gate: false")
        return [q.reshape(inner, width)]

    return MappedTensor(name, (2 * inner, width), (ours,), join, split)


def _deltanet(model: Model, ours: str, theirs: str) -> Iterator[MappedTensor]:
    g, width, base = model.deltanet, model.width, f"{theirs}.linear_attn"
    keys, values = g.key_heads * g.head_dim, g.value_heads * g.head_dim
    rows = [keys, keys, values]
    projections = tuple(f"{ours}.{name}.weight" for name in "qkv")
    yield MappedTensor(
        f"{base}.in_proj_qkv.weight",
        (sum(rows), width),
        projections,
        lambda parts: torch.cat(tuple(parts)),
        lambda t: t.split(rows),
    )
    for name, count in (("z", values), ("b", g.value_heads), ("a", g.value_heads)):
        yield same(f"{base}.in_proj_{name}.weight", f"{ours}.{name}.weight", (count, width))
    taps = tuple(f"{ours}.conv_{name}" for name in "qkv")
    yield MappedTensor(
        f"{base}.conv1d.weight", (sum(rows), 1, g.conv), taps,
        lambda parts: torch.cat(tuple(parts))[:, None], lambda t: t[:, 0].split(rows),
    )  # fmt: skip
    for name in ("A_log", "dt_bias"):
        yield same(f"{base}.{name}", f"{ours}.{name}", (g.value_heads,), float32=True)
    yield same(f"{base}.norm.weight", f"{ours}.norm", (g.head_dim,), float32=True)
    yield _scaled(f"{base}.out_proj.weight", f"{ours}.o.weight", (width, values), model.residual_scale)


def same(name: str, ours: str, shape: tuple[int, ...], *, float32: bool = False) -> MappedTensor:
    """A tensor that both store alike. Qwen3.5 stores RMSNorm weights as w - 1 as we do, and that of the gated norm as w."""
    return MappedTensor(name, shape, (ours,), lambda parts: parts[0], lambda tensor: [tensor], float32)


def norm_with_one(name: str, ours: str, width: int) -> MappedTensor:
    """The weight of an RMSNorm that they store as w: w - 1 in ours, exact where w is a bfloat16 number and not below 2^-16."""
    return MappedTensor(name, (width,), (ours,), lambda parts: parts[0] + 1, lambda tensor: [tensor - 1], True)


def _scaled(name: str, ours: str, shape: tuple[int, ...], scale: float) -> MappedTensor:
    """Theirs is ours times `scale`; the inverse is exact where the scale is a power of two."""
    if scale == 1:
        return same(name, ours, shape)
    return MappedTensor(name, shape, (ours,), lambda parts: parts[0] * scale, lambda tensor: [tensor / scale])
