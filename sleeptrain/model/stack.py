"""Blocks and their stack: one pass over one window as a function from features and state to features and state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleeptrain.model.attention import Attention, KVCache
from sleeptrain.model.config import Model
from sleeptrain.model.deltanet import DeltaNet
from sleeptrain.model.joint import SEPARATE, JointWeights, are_side_by_side, joint_weights, place_side_by_side
from sleeptrain.model.norm import RMSNorm
from sleeptrain.model.state import State
from sleeptrain.model.token_mask import TokenMask
from sleeptrain.program import Pass

CallWrapper = Callable[..., Any]
"""Calls `fn(*args)`. Activation checkpointing is such a wrapper: it saves only the arguments and recomputes in backward."""


def call_directly(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` without activation checkpointing."""
    return fn(*args)


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    @property
    def joint_layers(self) -> tuple[nn.Module, ...]:
        """The layers that may have a joint product."""
        modules: Any = self._modules
        return modules["gate"], modules["up"]

    def forward(self, x: Tensor, joint: Tensor | None = None) -> Tensor:
        """`joint`: the joint weight of `joint_layers`."""
        if joint is None:
            gate, up = F.silu(self.gate(x), inplace=not self._keeps_products), self.up(x)
        else:
            gate, up = F.linear(x, joint).chunk(2, -1)
            gate = F.silu(gate, inplace=not self._keeps_products)
        # In place where autograd does not need the factors, so that no third tensor is as large.
        return self.down(gate * up if torch.is_grad_enabled() else gate.mul_(up))

    @property
    def _keeps_products(self) -> bool:
        """A trainer keeps products for backward, also in a forward without gradients."""
        return self.training or torch.is_grad_enabled()


class Block(nn.Module):
    """Pre-norm residual block: `x + scale * mixer(norm1(x))`, then `x + scale * mlp(norm2(x))`; scale is `residual_scale`.

    Under `norm: sandwich` the output of each branch is normed as well.
    """

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        self.layer, self.scale = layer, model.residual_scale
        self.norm1 = RMSNorm(model.width, model.eps)
        self.mixer: Attention | DeltaNet = (
            DeltaNet(model.width, model.deltanet, model.eps)
            if model.pattern[layer] == "G"
            else Attention(model.width, model.attention, model.eps, local=model.pattern[layer] == "L")
        )
        self.norm2 = RMSNorm(model.width, model.eps)
        self.mlp = Mlp(model.width, model.mlp.hidden)
        sandwich = model.norm == "sandwich"
        self.out1: nn.Module = RMSNorm(model.width, model.eps) if sandwich else nn.Identity()
        self.out2: nn.Module = RMSNorm(model.width, model.eps) if sandwich else nn.Identity()
        self.compute: Callable[..., Any] = deltanet_block if model.pattern[layer] == "G" else attention_block
        """`attention_block` or `deltanet_block`, or that function compiled (`compile_blocks`)."""
        self.differentiated: bool | None = None
        """Where weights of the model are frozen (`trained.freeze`): whether features and state of this block have a gradient. None: those
        that depend on a weight, which is all of them."""
        self.place_joint_weights()

    def place_joint_weights(self) -> None:
        """Move the weights of layers that read the same input side by side, so that they have a joint product. Not after an
        engine was made of the model: its optimizer writes to where the weights are."""
        for layers in self._joint_layers:
            place_side_by_side(layers)

    @property
    def _joint_layers(self) -> list[Sequence[nn.Module]]:
        modules: Any = self._modules  # faster than attributes of modules, and this runs for every use of a block
        return [*modules["mixer"].joint_layers, modules["mlp"].joint_layers]

    def joint_weights(self) -> JointWeights:
        """The joint weights of the block, in the graph of autograd; those of its parameters as they are now."""
        *mixer, mlp = joint_weights(self._joint_layers)
        return JointWeights(tuple(mixer), mlp)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Block:
        # A module that is moved or cast gets a storage for each parameter.
        joined = [layers for layers in self._joint_layers if are_side_by_side(layers)]
        super()._apply(fn, recurse)
        for layers in joined:
            place_side_by_side(layers)
        return self

    def forward(
        self, h: Tensor, state: State, op: Pass, span: int, mask: TokenMask, position0: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features [batch, time, width] -> (features, the leaves of this layer's state that changed).

        `position0` [] or [batch, 1], an int64 tensor, replaces `op.position0` as the rotary position of the first token.
        """
        if self.differentiated is None or not torch.is_grad_enabled():
            return self._run(h, state, op, span, mask, position0)
        # Autograd alone would leave out the states of some frozen blocks, differently in every executor, and the gradient of the
        # state is measured and clipped.
        with torch.set_grad_enabled(self.differentiated):
            if self.differentiated and not h.requires_grad:
                h = h.detach().requires_grad_()
                h.register_post_accumulate_grad_hook(_drop_grad)
            return self._run(h, state, op, span, mask, position0)

    def _run(
        self, h: Tensor, state: State, op: Pass, span: int, mask: TokenMask, position0: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        name, joint = f"layers.{self.layer}", self.joint_weights()
        if isinstance(self.mixer, DeltaNet):
            h, fast, conv = self.compute(self, h, state[f"{name}.fast"], state[f"{name}.conv"], mask, joint)
            return h, {f"{name}.fast": fast, f"{name}.conv": conv}
        cached = KVCache(state[f"{name}.key"], state[f"{name}.value"], state[f"{name}.seen"]) if op.kv_read else None
        h, cache = self.compute(self, h, cached, op.position0 if position0 is None else position0, span, mask, joint)
        new = {f"{name}.key": cache.key, f"{name}.value": cache.value, f"{name}.seen": cache.seen}
        return h, new if op.kv_write else {}

    def add_branches(self, h: Tensor, y: Tensor, joint: JointWeights = SEPARATE) -> Tensor:
        """The features after the block, from those before it and the output of its mixer."""
        h = torch.add(h, self.out1(y), alpha=self.scale)
        return torch.add(h, self.out2(self.mlp(self.norm2(h), joint.mlp)), alpha=self.scale)


def _drop_grad(h: Tensor) -> None:
    """Free a gradient that nobody reads."""
    h.grad = None


def deltanet_block(
    block: Block, h: Tensor, fast: Tensor, conv: Tensor, mask: TokenMask, joint: JointWeights = SEPARATE
) -> tuple[Tensor, Tensor, Tensor]:
    """A block with Gated DeltaNet as a function of tensors alone: the features after it, the new S and the new tail."""
    y, fast, conv = block.mixer(block.norm1(h), fast, conv, mask, joint.mixer)
    return block.add_branches(h, y, joint), fast, conv


def attention_block(
    block: Block, h: Tensor, cache: KVCache | None, position0: int | Tensor, span: int, mask: TokenMask,
    joint: JointWeights = SEPARATE,
) -> tuple[Tensor, KVCache]:  # fmt: skip
    """A block with attention as a function of tensors alone: the features after it, and the cache with this window appended."""
    y, cache = block.mixer(block.norm1(h), cache, position0, span, mask, joint.mixer)
    return block.add_branches(h, y, joint), cache


class Stack(nn.ModuleList):
    """The blocks in order; pipeline stages replace blocks of other stages by `nn.Identity`."""

    def __init__(self, model: Model) -> None:
        super().__init__(Block(model, i) for i in range(len(model.pattern)))

    def forward(
        self, h: Tensor, state: State, op: Pass, blocks: tuple[int, int], span: int, mask: TokenMask,
        wrap_block: CallWrapper = call_directly,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Run blocks[0]..blocks[1]-1 over one window.

        `h` [batch, time, width]; `op` gives the positions and whether caches are read and written; `span` is the number of
        keys that a query sees at most; `mask` is that of the pass; `wrap_block` calls each block.
        """
        changed: dict[str, Tensor] = {}
        for block in list(self)[blocks[0] : blocks[1]]:
            h, new = wrap_block(block, h, state, op, span, mask)
            changed |= new
        return h, state.replace(changed)
