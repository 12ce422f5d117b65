"""State as a value: all that passes from one piece of work to the next, as named leaves.

Eviction, resets and truncated back-propagation are rules over what a leaf crosses, not code in layers.
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
    """One tensor of the state. `shape` leaves the batch out; where `timed`, its first dimension is time and may be
    anything up to the size given. `tensor_dim` is the dimension (batch counted) that tensor parallelism splits."""

    name: str
    layer: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor_dim: int | None
    crosses: frozenset[Border]
    timed: bool = False


def leaves(model: Model, sleep: Sleep, dtype: torch.dtype = torch.float32, live: bool = False) -> tuple[Leaf, ...]:
    """The leaves of a model's state, in layer order.

    `fast` is S [value_heads, d_k, d_v], float32 (float64 in a float64 model); `conv` the last taps-1 inputs of the
    short convolution [taps-1, key_heads, channels of a key head and its value heads]; `kv` keys, values
    [time, kv_heads, head_dim] and which of them are not padding [time]. `dtype` is that of the activations. With `live`,
    caches have room for a window in the making, and `live_leaves` follow.
    """
    found: list[Leaf] = []
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tail = EVERYWHERE if sleep.evict.conv_carry else frozenset[Border]()
    cache: frozenset[Border] = EVERYWHERE if sleep.evict.mode == "sliding" else frozenset()
    kept = kept_tokens(sleep) + (sleep.window if live else 0)
    g, a = model.deltanet, model.attention
    for i, letter in enumerate(model.pattern):
        if letter == "G":
            s = (g.value_heads, g.head_dim, g.head_dim)
            channels = 2 * g.head_dim + g.value_heads // g.key_heads * g.head_dim
            found.append(Leaf(f"layers.{i}.fast", i, "fast", s, wide, 1, EVERYWHERE))
            found.append(Leaf(f"layers.{i}.conv", i, "conv", (g.conv - 1, g.key_heads, channels), dtype, 2, tail))
        else:
            kv = (kept, a.kv_heads, a.head_dim)
            found.append(Leaf(f"layers.{i}.key", i, "kv", kv, dtype, 2, cache, timed=True))
            found.append(Leaf(f"layers.{i}.value", i, "kv", kv, dtype, 2, cache, timed=True))
            found.append(Leaf(f"layers.{i}.seen", i, "kv", (kept,), torch.bool, None, cache, timed=True))
    return (*found, *live_leaves(model, sleep, dtype, found)) if live else tuple(found)


def live_leaves(model: Model, sleep: Sleep, dtype: torch.dtype, found: list[Leaf]) -> list[Leaf]:
    """What an unfinished window needs, so that its later passes can run when it is full.

    Its tokens, which of them are real and which were scored or generated, the features that entered and left the looped
    range in pass 1; how many tokens came before it; the logits after the newest token; and, where a coda runs after the
    last pass only, the coda's state as it was before the window.
    """
    none: frozenset[Border] = frozenset()
    length, width = sleep.window, model.width
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def timed(name: str, *shape: int, of: torch.dtype) -> Leaf:
        return Leaf(f"live.{name}", -1, "live", (length, *shape), of, None, none, timed=True)

    made = [timed("tokens", of=torch.int64), timed("real", of=torch.bool), timed("scored", of=torch.bool)]
    made += [timed("above", width, of=dtype), timed("exit", width, of=dtype)]
    made += [Leaf("live.before", -1, "live", (1,), torch.int64, None, EVERYWHERE)]
    made += [Leaf("live.logits", -1, "live", (model.vocab or 0,), wide, None, EVERYWHERE)]
    if sleep.loop.trigger == "context":
        coda = blocks_of("coda", sleep, len(model.pattern))
        kept = [f for f in found if coda[0] <= f.layer < coda[1]]
        made += [replace(f, name=f"live.{f.name}", kind="live", crosses=EVERYWHERE) for f in kept]
    return made


@dataclass(frozen=True)
class State:
    """Tensors by leaf name. Every method returns a new state; none writes into a tensor."""

    spec: tuple[Leaf, ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def zeros(cls, spec: Iterable[Leaf], batch: int, device: torch.device | str = "cpu") -> State:
        """The state before the first token: fast weights and tails zero, caches empty."""
        spec = tuple(spec)
        empty = {leaf.name: ((0, *leaf.shape[1:]) if leaf.timed else leaf.shape) for leaf in spec}
        return cls(spec, {f.name: torch.zeros(batch, *empty[f.name], dtype=f.dtype, device=device) for f in spec})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def replace(self, tensors: Mapping[str, Tensor]) -> State:
        """The same state with some tensors exchanged."""
        return State(self.spec, {**self.tensors, **tensors})

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors in the order of the leaves."""
        return tuple(self.tensors[leaf.name] for leaf in self.spec)

    def unflat(self, tensors: Iterable[Tensor]) -> State:
        """The inverse of `flat`."""
        return State(self.spec, {leaf.name: t for leaf, t in zip(self.spec, tensors, strict=True)})

    def hollow(self) -> State:
        """The leaves without their tensors: all that `unflat` needs, for functions that must keep no tensor alive."""
        return State(self.spec, {})

    def detach(self) -> State:
        """Cut every leaf from the graph."""
        return State(self.spec, {name: t.detach() for name, t in self.tensors.items()})

    def rows(self, index: Tensor) -> State:
        """The rows `index` [n] of the batch, in that order."""
        return State(self.spec, {name: t.index_select(0, index) for name, t in self.tensors.items()})

    def reset(self, keep: Tensor) -> State:
        """Rows where `keep` [batch] is false start anew: zero fast weights and tails, nothing seen in the cache."""
        rows = {
            n: torch.where(keep.view(-1, *[1] * (t.dim() - 1)), t, t.new_zeros(())) for n, t in self.tensors.items()
        }
        return State(self.spec, rows)

    def cross(self, border: Border) -> State:
        """What is left on the other side of a border: leaves that do not cross it are zero, or empty."""
        left = {f.name: _nothing(f, self[f.name]) for f in self.spec if border not in f.crosses}
        return self.replace(left) if left else self

    def evict(self, boundary: Boundary) -> State:
        """The state after a window: caches keep the newest `boundary.keep_kv` tokens; cut from the graph if it says so."""
        state = self.cross("window").cross("eviction")
        kv = {f.name: _newest(state[f.name], boundary.keep_kv) for f in self.spec if f.kind == "kv"}
        state = state.replace(kv)
        return state.detach() if boundary.detach else state

    def forget_newest(self, tokens: int, blocks: tuple[int, int]) -> State:
        """Drop the newest `tokens` entries of these blocks' caches: what pass 1 wrote, before the next pass rewrites it."""
        caches = [f for f in self.spec if f.kind == "kv" and blocks[0] <= f.layer < blocks[1]]
        return self.replace({f.name: self[f.name][:, : max(0, self[f.name].shape[1] - tokens)] for f in caches})

    def nbytes(self, *kinds: Kind) -> int:
        """Bytes held by the leaves of these kinds (all, if none is named)."""
        return sum(self[f.name].nbytes for f in self.spec if not kinds or f.kind in kinds)


def _nothing(leaf: Leaf, tensor: Tensor) -> Tensor:
    return tensor[:, :0] if leaf.timed else torch.zeros_like(tensor)


def _newest(tensor: Tensor, tokens: int) -> Tensor:
    """The newest entries of a cache; a copy where older ones go, since a view would keep their memory."""
    return tensor[:, tensor.shape[1] - tokens :].clone() if tensor.shape[1] > tokens else tensor
