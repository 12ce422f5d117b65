"""Rows of unequal lengths in one state: the tensors over time hold each row's tokens at their right end.

What a row has less than the longest one is padding at the left, which attention does not see. So the newest tokens of all rows
are at the same index, and the distance of two tokens of a row is the difference of their indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sleeptrain.model.config import Model
from sleeptrain.model.state import Leaf, State, leaves
from sleeptrain.program import Sleep, kept_tokens

FILL = "live.fill"
"""The leaf [rows, 1] int64 that counts the tokens of each row's unfinished window."""


def session_leaves(model: Model, sleep: Sleep, dtype: torch.dtype) -> tuple[Leaf, ...]:
    """The leaves of a session's state: those of a model with an unfinished window, and `FILL`."""
    return (*leaves(model, sleep, dtype, live=True), Leaf(FILL, -1, "live", (1,), torch.int64, None, frozenset()))


def put_rows(state: State, index: Tensor, part: State) -> State:
    """Replace the rows `index` [n] of a state by the n rows of `part`."""
    if len(index) == len(state[FILL]):
        return part
    return _aligned([state, part], lambda old, new: old.index_copy(0, index, new))


def join_rows(states: Sequence[State]) -> State:
    """One state with the rows of all `states` in order."""
    return _aligned(states, lambda *tensors: torch.cat(tensors))


def _aligned(states: Sequence[State], combine: Callable[..., Tensor]) -> State:
    """Combine the tensors of several states leaf by leaf, with padding at the left where one has less time than another."""
    new = {}
    for leaf in states[0].spec:
        tensors = [state[leaf.name] for state in states]
        if leaf.timed:
            time = max(tensor.shape[1] for tensor in tensors)
            tensors = [F.pad(t, (0, 0) * (t.dim() - 2) + (time - t.shape[1], 0)) for t in tensors]
        new[leaf.name] = combine(*tensors)
    return State(states[0].spec, new)


def push_right(state: State, padding: Tensor) -> State:
    """Move each row's tokens by `padding` [rows] to the right, over the padding that follows them, in caches and unfinished windows."""
    new = {}
    for leaf in state.spec:
        if leaf.timed and not _at_start(leaf):
            tensor = state[leaf.name]
            shape = (*tensor.shape[:2], *[1] * (tensor.dim() - 2))
            source = (torch.arange(tensor.shape[1], device=tensor.device) - padding[:, None]).view(shape)
            moved = tensor.gather(1, source.clamp_min(0).expand_as(tensor))
            new[leaf.name] = moved.masked_fill(source < 0, 0)
    return state.replace(new)


def trim(state: State, sleep: Sleep) -> State:
    """Drop what is padding in all rows. A tensor is copied where something is dropped: a view would keep its memory alive."""
    fill, new = state[FILL], {}
    kept = state["live.before"].clamp_max(kept_tokens(sleep))
    held = {"kv": _most(kept + fill), "live": _most(fill), "start": _most(kept)}
    for leaf in state.spec:
        if leaf.timed:
            time, tensor = held["start" if _at_start(leaf) else leaf.kind], state[leaf.name]
            if tensor.shape[1] > time:
                new[leaf.name] = tensor[:, tensor.shape[1] - time :].clone()
    return state.replace(new) if new else state


def _at_start(leaf: Leaf) -> bool:
    """Whether a leaf is a copy of the coda's state at the start of the window, to which the window's tokens are not appended."""
    return leaf.name.startswith("live.layers.")


def _most(counts: Tensor) -> int:
    return int(counts.max()) if len(counts) else 0
