"""Reads one token of every row: pass 1 over a token, without what pieces of several tokens need."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor

from sleeptrain.inference.rows import FILL
from sleeptrain.model.attention import rotary_cos_sin
from sleeptrain.model.joint import SEPARATE
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.stack import Block
from sleeptrain.model.state import Leaf, State
from sleeptrain.model.token import TokenFunctions, attend_token
from sleeptrain.program import Sleep, blocks_of

FIRST_ROOM = 64
"""Tokens for which a time buffer has room at least."""


class TimeBuffers:
    """Room behind the newest token of tensors over time, so that another one is written there and the others are not copied.

    A tensor of a state is never changed: only the tensor that was returned last can be followed by a token in its buffer, any other is
    copied to a new one. Buffers grow by doubling, up to the most tokens that the leaf holds.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}

    def append(self, leaf: Leaf, old: Tensor, token: Tensor) -> Tensor:
        """`old` [rows, time, ...] with a token [rows, 1, ...] after it."""
        time = old.shape[1]
        buffer, newest = self._buffers.get(leaf.name, (old, None))
        if newest is not old or time == buffer.shape[1]:
            room = max(time + 1, min(leaf.shape[0], max(FIRST_ROOM, 2 * time)))
            buffer = old.new_empty((old.shape[0], room, *old.shape[2:]))
            buffer[:, :time] = old
        buffer[:, time : time + 1] = token
        new = buffer[:, : time + 1]
        self._buffers[leaf.name] = buffer, new
        return new

    def clear(self) -> None:
        """Forget all buffers; tensors that were returned stay valid."""
        self._buffers.clear()


@dataclasses.dataclass
class Room:
    """What is known of a state without asking its device."""

    tokens: int
    """How many tokens fit into the fullest unfinished window."""
    seen: bool
    """Whether attention sees all cached tokens, as none of them is padding."""

    @classmethod
    def of(cls, state: State, sleep: Sleep) -> Room:
        """That of a state."""
        seen = [state[f.name] for f in state.spec if f.kind == "kv" and f.name.endswith(".seen")]
        fill = state[FILL]
        tokens = sleep.window - int(fill.max()) if len(fill) else 0
        return cls(tokens, all(bool(tensor.all()) for tensor in seen))


class TokenReader:
    """Pass 1 over one token of every row of a session."""

    def __init__(self, model: LanguageModel, sleep: Sleep, functions: TokenFunctions) -> None:
        self.model, self.sleep, self.functions = model, sleep, functions
        self.buffers, depth = TimeBuffers(), len(model.layers)
        self._loop = blocks_of("loop", sleep, depth)
        self._sliding = sleep.evict.mode == "sliding"
        windows = {"A": model.config.attention.window, "L": model.config.attention.local}
        self._spans = [min(sleep.window, windows.get(letter) or sleep.window) for letter in model.config.pattern]

    def read(self, state: State, tokens: Tensor, *, scored: bool, seen: bool) -> tuple[Tensor, State]:
        """The features after the last block [rows, 1, width], and the state after `tokens` [rows, 1], for which there is room.

        `seen`: attention sees all cached tokens.
        """
        model, fill, leaves = self.model, state[FILL], {leaf.name: leaf for leaf in state.spec}
        h = model.embed(tokens)
        position = fill + state["live.before"] if self._sliding else fill
        cos, sin = rotary_cos_sin(position, 1, model.config.attention, h)
        real = torch.ones_like(tokens, dtype=torch.bool)
        new: dict[str, Tensor] = {}

        def append(name: str, token: Tensor) -> Tensor:
            new[name] = self.buffers.append(leaves[name], state[name], token)
            return new[name]

        entry = h
        for layer, block in enumerate(model.layers):
            entry = h if layer == self._loop[0] else entry
            name = f"layers.{layer}"
            if f"{name}.fast" in leaves:
                fast, conv = f"{name}.fast", f"{name}.conv"
                # On a CPU a product less takes as long as to find the joint weights.
                joint = cast(Block, block).joint_weights() if h.is_cuda else SEPARATE
                h, new[fast], new[conv] = self.functions.deltanet(block, h, state[fast], state[conv], joint)
            else:
                x, q, k, v = self.functions.attention_inputs(block, h, cos, sin)
                key, value = append(f"{name}.key", k), append(f"{name}.value", v)
                seen_keys = append(f"{name}.seen", real)
                first = max(0, key.shape[1] - self._spans[layer])
                mask = None if seen else seen_keys[:, first:]
                o = attend_token(q, key[:, first:], value[:, first:], mask)
                h = self.functions.attention_output(block, h, x, o)
            if layer == self._loop[1] - 1:
                append("live.exit", h)
        for name, token in (
            ("tokens", tokens),
            ("real", real),
            ("scored", real if scored else ~real),
            ("above", entry),
        ):
            append(f"live.{name}", token)
        new |= {FILL: fill + 1, "live.logits": self.functions.logits(model, h)}
        return h, state.replace(new)
