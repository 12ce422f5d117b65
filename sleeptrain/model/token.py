"""One token through the blocks as functions of tensors whose shapes do not depend on the context, so that each is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from sleeptrain.model.attention import Attention
from sleeptrain.model.deltanet import DeltaNet
from sleeptrain.model.joint import SEPARATE, JointWeights
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.stack import Block


def deltanet_token(
    block: Block, h: Tensor, fast: Tensor, conv: Tensor, joint: JointWeights = SEPARATE
) -> tuple[Tensor, Tensor, Tensor]:
    """A block with Gated DeltaNet over one token [batch, 1, width]: the features after it, the new S and the new tail."""
    y, fast, conv = cast(DeltaNet, block.mixer).token(block.norm1(h), fast, conv, joint.mixer)
    return block.add_branches(h, y, joint), fast, conv


def attention_inputs(block: Block, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The input of a block's attention for one token, and its query, key and value [batch, 1, heads, head_dim]."""
    x, mixer = block.norm1(h), cast(Attention, block.mixer)
    return x, *mixer.project(x, cos, sin)


def attention_output(block: Block, h: Tensor, x: Tensor, o: Tensor) -> Tensor:
    """The features after a block with attention, from those before it, its attention's input, and what the heads read
    [batch, 1, heads * head_dim]."""
    return block.add_branches(h, cast(Attention, block.mixer).output(o, x))


def token_logits(model: LanguageModel, h: Tensor) -> Tensor:
    """The logits [batch, vocab] after a token, from its features [batch, 1, width]."""
    return model.logits(h)[:, 0]


@dataclass(frozen=True)
class TokenFunctions:
    """The functions above as they are called: themselves, or compiled."""

    deltanet: Callable[..., Any] = deltanet_token
    attention_inputs: Callable[..., Any] = attention_inputs
    attention_output: Callable[..., Any] = attention_output
    logits: Callable[..., Any] = token_logits


def attend_token(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Attention of one query [batch, 1, heads, head_dim] to keys and values [batch, time, kv_heads, head_dim], its own the last.

    `seen` [batch, time] is false at keys that are not read; None: all are. Returns [batch, 1, heads * head_dim].
    """
    batch, _, heads, d = q.shape
    # The queries that share a key head are as good as so many tokens, and their keys need not be copied.
    grouped = q.view(batch, k.shape[2], heads // k.shape[2], d)
    mask = None if seen is None else seen[:, None, None, :]
    o = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return o.reshape(batch, 1, heads * d)
