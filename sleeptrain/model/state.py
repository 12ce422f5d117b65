"""The recurrent state of a model: named tensors that one pass or window hands to the next.

Each leaf declares which borders (pass, window, eviction, step) it crosses. Eviction, resets and truncated backpropagation
are rules over these declarations, so that layers have no code for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.program import Boundary, Sleep, blocks_of, kept_tokens

Kind = Literal["fast", "conv", "kv", "live"]
Border = Literal["pass", "window", "eviction", "step"]
EVERYWHERE: frozenset[Border] = frozenset({"pass", "window", "eviction", "step"})


@dataclass(frozen=True)
class Leaf:
    """The declaration of one tensor of the state."""

    name: str
    layer: int
    kind: Kind
    shape: tuple[int, ...]
    """Without the batch dimension."""
    dtype: torch.dtype
    tensor_dim: int | None
    """The dimension, batch included, that tensor parallelism shards; None: replicated."""
    crosses: frozenset[Border]
    """Borders over which the tensor is carried; at any other one it is reset."""
    timed: bool = False
    """The first dimension of `shape` is time, and the tensor holds up to that many tokens."""


def leaves(model: Model, sleep: Sleep, dtype: torch.dtype = torch.float32, live: bool = False) -> tuple[Leaf, ...]:
    """The leaves of a model's state, in layer order.

    `fast` is S [value_heads, d_k, d_v], float32 (float64 in a float64 model); `conv` the last taps-1 inputs of the
    convolution [taps-1, key_heads, channels of a key head and its value heads, or under dynamic convolution of the latter]; `kv` the keys and values
    [time, kv_heads, head_dim] and their padding mask [time]. `dtype` is that of the activations. With `live` the caches
    hold an unfinished window as well, and the leaves of `live_leaves` are appended.
    """
    stored: list[Leaf] = []
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tail = EVERYWHERE if sleep.evict.conv_carry else frozenset[Border]()
    cache: frozenset[Border] = EVERYWHERE if sleep.evict.mode == "sliding" else frozenset()
    kept = kept_tokens(sleep) + (sleep.window if live else 0)
    g, a = model.deltanet, model.attention
    for i, letter in enumerate(model.pattern):
        if letter == "G":
            s = (g.value_heads, g.head_dim, g.d_v)
            channels = g.value_heads // g.key_heads * g.d_v + (2 * g.head_dim if g.generator is None else 0)
            stored.append(Leaf(f"layers.{i}.fast", i, "fast", s, wide, 1, EVERYWHERE))
            stored.append(Leaf(f"layers.{i}.conv", i, "conv", (g.conv - 1, g.key_heads, channels), dtype, 2, tail))
        else:
            kv = (kept, a.kv_heads, a.head_dim)
            stored.append(Leaf(f"layers.{i}.key", i, "kv", kv, dtype, 2, cache, timed=True))
            stored.append(Leaf(f"layers.{i}.value", i, "kv", kv, dtype, 2, cache, timed=True))
            stored.append(Leaf(f"layers.{i}.seen", i, "kv", (kept,), torch.bool, None, cache, timed=True))
    return (*stored, *live_leaves(model, sleep, dtype, stored)) if live else tuple(stored)


def live_leaves(model: Model, sleep: Sleep, dtype: torch.dtype, stored: list[Leaf]) -> list[Leaf]:
    """The leaves of an unfinished window, from which passes 2..N run when it is full.

    Its tokens, which of them are not padding and which were scored or generated; the features that entered and left the
    looped range in pass 1; the number of tokens before the window; the logits after the newest token; and, where the coda
    runs after the last pass only, the coda's state at the start of the window.
    """
    none: frozenset[Border] = frozenset()
    length, width = sleep.window, model.width
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def timed(name: str, *shape: int, of: torch.dtype) -> Leaf:
        return Leaf(f"live.{name}", -1, "live", (length, *shape), of, None, none, timed=True)

    live = [timed("tokens", of=torch.int64), timed("real", of=torch.bool), timed("scored", of=torch.bool)]
    live += [timed("above", width, of=dtype), timed("exit", width, of=dtype)]
    live += [Leaf("live.before", -1, "live", (1,), torch.int64, None, EVERYWHERE)]
    live += [Leaf("live.logits", -1, "live", (model.vocab or 0,), wide, None, EVERYWHERE)]
    if sleep.loop.trigger == "context":
        coda = blocks_of("coda", sleep, len(model.pattern))
        carried = [f for f in stored if coda[0] <= f.layer < coda[1]]
        live += [replace(f, name=f"live.{f.name}", kind="live", crosses=EVERYWHERE) for f in carried]
    return live


@dataclass(frozen=True)
class State:
    """Tensors by leaf name. Methods return a new state and never write into a tensor."""

    spec: tuple[Leaf, ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def zeros(cls, spec: Iterable[Leaf], batch: int, device: torch.device | str = "cpu") -> State:
        """The state before the first token: zero fast weights and convolution tails, empty caches."""
        spec = tuple(spec)
        empty = {leaf.name: ((0, *leaf.shape[1:]) if leaf.timed else leaf.shape) for leaf in spec}
        return cls(spec, {f.name: torch.zeros(batch, *empty[f.name], dtype=f.dtype, device=device) for f in spec})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def replace(self, tensors: Mapping[str, Tensor]) -> State:
        """A state in which some tensors are replaced."""
        return State(self.spec, {**self.tensors, **tensors})

    def flat(self) -> tuple[Tensor, ...]:
        """The tensors in the order of `spec`."""
        return tuple(self.tensors[leaf.name] for leaf in self.spec)

    def unflat(self, tensors: Iterable[Tensor]) -> State:
        """The inverse of `flat`."""
        return State(self.spec, {leaf.name: t for leaf, t in zip(self.spec, tensors, strict=True)})

    def detach(self) -> State:
        """Detach every tensor from the graph."""
        return State(self.spec, {name: t.detach() for name, t in self.tensors.items()})

    def rows(self, index: Tensor) -> State:
        """The batch rows `index` [n], in that order."""
        return State(self.spec, {name: t.index_select(0, index) for name, t in self.tensors.items()})

    def reset(self, keep: Tensor) -> State:
        """Reset the rows where `keep` [batch] is false: zero fast weights and tails, all cached tokens masked out."""
        rows = {
            n: torch.where(keep.view(-1, *[1] * (t.dim() - 1)), t, t.new_zeros(())) for n, t in self.tensors.items()
        }
        return State(self.spec, rows)

    def cross(self, border: Border) -> State:
        """The state after a border: leaves that do not cross it are zero, or empty if they are timed."""
        reset = {f.name: _reset(f, self[f.name]) for f in self.spec if border not in f.crosses}
        return self.replace(reset) if reset else self

    def evict(self, boundary: Boundary) -> State:
        """The state after a window: caches keep the newest `boundary.keep_kv` tokens; detached if `boundary.detach`."""
        state = self.cross("window").cross("eviction")
        kv = {f.name: _newest(state[f.name], boundary.keep_kv) for f in self.spec if f.kind == "kv"}
        state = state.replace(kv)
        return state.detach() if boundary.detach else state

    def forget_newest(self, tokens: int, blocks: tuple[int, int]) -> State:
        """Drop the newest `tokens` entries of the caches of blocks[0]..blocks[1]-1, before a later pass rewrites them."""
        caches = [f for f in self.spec if f.kind == "kv" and blocks[0] <= f.layer < blocks[1]]
        return self.replace({f.name: self[f.name][:, : max(0, self[f.name].shape[1] - tokens)] for f in caches})

    def nbytes(self, *kinds: Kind) -> int:
        """Bytes of the leaves of these kinds, or of all leaves if none is given."""
        return sum(self[f.name].nbytes for f in self.spec if not kinds or f.kind in kinds)


def _reset(leaf: Leaf, tensor: Tensor) -> Tensor:
    return tensor[:, :0] if leaf.timed else torch.zeros_like(tensor)


def _newest(tensor: Tensor, tokens: int) -> Tensor:
    """The newest entries of a cache, copied where older ones are dropped: a view would keep their memory alive."""
    return tensor[:, tensor.shape[1] - tokens :].clone() if tensor.shape[1] > tokens else tensor
