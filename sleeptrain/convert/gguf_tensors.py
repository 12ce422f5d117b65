"""The tensors of a GGUF file of architecture `qwen35`, each made of one tensor of the Hugging Face folder.

Names and transformations are those of llama.cpp's converter (conversion/qwen.py in llama-cpp-python 0.3.36): RMSNorm weights are
stored with their 1, `ssm_a` is -exp(A_log), and the value heads that share a key head are apart from each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sleeptrain.convert.qwen3_5 import MappedTensor
from sleeptrain.inference.llama_state import tiled
from sleeptrain.model.config import DeltaNetConfig, Model

BLOCK = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight", "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight", "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.norm.weight": "ssm_norm.weight", "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
}  # fmt: skip
"""Their names in a block, by those of transformers."""
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file."""

    name: str
    shape: tuple[int, ...]
    """In the order of torch; a GGUF file lists sizes in the other order."""
    source: str
    """The tensor of transformers that it is made of."""
    make: Callable[[Tensor], Tensor]
    """Its float32 values, from those of the source."""
    float32: bool
    """Stored in float32 in every file: vectors and convolutions, as the kernels of llama.cpp expect."""


def gguf_tensors(model: Model, mapped: list[MappedTensor]) -> list[GgufTensor]:
    """The tensors in the order of `mapped`, which they use exactly once each."""
    return [_tensor(model.deltanet, tensor) for tensor in mapped]


def _tensor(g: DeltaNetConfig, source: MappedTensor) -> GgufTensor:
    shape = tuple(size for i, size in enumerate(source.shape) if not (len(source.shape) == 3 and i == 1))
    if source.name in OUTSIDE:
        name, part = OUTSIDE[source.name], source.name
    else:
        layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", source.name).groups()  # type: ignore[union-attr]
        name = f"blk.{layer}.{BLOCK[part]}"
    steps = list(_steps(g, part))

    def make(values: Tensor) -> Tensor:
        values = values.float().reshape(shape)
        for step in steps:
            values = step(values)
        return values.contiguous()

    return GgufTensor(name, shape, source.name, make, len(shape) == 1 or part == "linear_attn.conv1d.weight")


def _steps(g: DeltaNetConfig, part: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """What is done to the values of a tensor."""
    if part.endswith("norm.weight") and part != "linear_attn.norm.weight":
        yield lambda norm: norm + 1
    match part.removeprefix("linear_attn."):
        case "in_proj_qkv.weight" | "conv1d.weight":
            keys = 2 * g.key_heads * g.head_dim
            yield lambda rows: torch.cat([rows[:keys], _rows(rows[keys:], g)])
        case "in_proj_z.weight" | "in_proj_a.weight" | "in_proj_b.weight" | "dt_bias":
            yield lambda rows: _rows(rows, g)
        case "A_log":
            yield lambda logs: -torch.exp(_rows(logs, g))
        case "out_proj.weight":
            yield lambda columns: _rows(columns.T, g).T


def _rows(rows: Tensor, g: DeltaNetConfig) -> Tensor:
    """Rows of all value heads [value_heads * n, ...] in llama.cpp's order."""
    return tiled(rows.unflatten(0, (g.value_heads, -1)), g).flatten(0, 1)
