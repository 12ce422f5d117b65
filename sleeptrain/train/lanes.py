"""The state of lanes: what the rows of this process leave at the end of a step, and with which those of the next one begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleeptrain.checkpoint import CarriedSlice
from sleeptrain.checkpoint.place import place_of_part
from sleeptrain.data.batch import Batch
from sleeptrain.model.attention import apply_rotary, rotary_cos_sin
from sleeptrain.model.config import AttentionConfig
from sleeptrain.model.state import Leaf, State
from sleeptrain.parallel.mesh import MeshAxes


class Lanes:
    """The state after each row of the newest step, detached; rows are those of this process's micro-batches, in order.

    It holds the leaves of the process's own blocks and heads. Caches have their full length from the beginning, so that all rows
    have equal shapes; what was not read yet is masked.
    """

    def __init__(self, empty: State, micro_batches: int, length: int, attention: AttentionConfig) -> None:
        """`empty`: the state of a micro-batch before the first token. `length`: tokens of a row."""
        self._length, self._attention = length, attention
        timed = {leaf.name: leaf.shape for leaf in empty.spec if leaf.timed}
        full = {name: empty[name].new_zeros(empty[name].shape[0], *shape) for name, shape in timed.items()}
        self.states = [empty.replace(full)] * micro_batches
        """By micro-batch. Loading a checkpoint replaces them."""

    def begin(self, micro_batch: int, batch: Batch) -> State:
        """The state with which a micro-batch begins: empty for rows that begin a run or a document."""
        assert batch.continued is not None and batch.starts is not None
        return self._only(micro_batch, batch.continued & ~batch.starts[:, 0])

    def keep(self, states: Sequence[State]) -> None:
        """Keep the states after a step, by micro-batch, for the next one."""
        self.states = [self._carried(state.cross("step")) for state in states]

    def skip(self, batches: Sequence[Batch]) -> None:
        """Go over the rows of a step that was not applied: lanes keep the state before it, but for those in which a document or a run
        began. The next row continues that one, to which the state does not belong: it begins with an empty state."""
        states = []
        for number, batch in enumerate(batches):
            assert batch.continued is not None and batch.starts is not None
            states.append(self._only(number, batch.continued & ~batch.starts.any(1)))
        self.states = states

    def slices(self, axes: MeshAxes) -> list[CarriedSlice]:
        """A copy of the state, as what a checkpoint has of it: a tensor for every lane and leaf. A lane is a row of the global batch."""
        slices = []
        for micro_batch, state in enumerate(self.states):
            for leaf in state.spec:
                for row, values in enumerate(state[leaf.name]):
                    lane = (micro_batch * len(state[leaf.name]) + row) * axes.data.size + axes.data.rank
                    slices.append(_slice(lane, leaf, values, axes))
        return slices

    def load(self, slices: Sequence[CarriedSlice]) -> None:
        """Take the values of `slices`, in the order in which the method of this name makes them."""
        loaded, states = iter(slices), []
        for state in self.states:
            tensors = {
                leaf.name: torch.stack([next(loaded).values.view(row.shape).to(row) for row in state[leaf.name]])
                for leaf in state.spec
            }
            states.append(state.replace(tensors))
        self.states = states

    def _only(self, micro_batch: int, rows: Tensor) -> State:
        """The state of a micro-batch, empty where `rows` [rows], on the CPU, is false."""
        state = self.states[micro_batch]
        return state.reset(rows.to(next(iter(state.tensors.values())).device))

    def _carried(self, state: State) -> State:
        """A copy whose keys are at the positions that they have in the next row, where it begins `length` tokens later.

        CUDA graphs and buffers of the executor may write into the tensors of a state in the next step.
        """
        moved = {leaf.name: state[leaf.name].detach().clone() for leaf in state.spec}
        for leaf in state.spec:
            if leaf.kind == "kv" and leaf.name.endswith(".key"):
                moved[leaf.name] = self._move_back(moved[leaf.name])
        return state.replace(moved)

    def _move_back(self, key: Tensor) -> Tensor:
        """Keys [rows, time, heads, head_dim] with their rotary positions lowered by the length of a row."""
        cos, sin = rotary_cos_sin(-self._length, 1, self._attention, key.new_empty(0, dtype=torch.float64))
        return apply_rotary(key, cos, sin)


def _slice(lane: int, leaf: Leaf, values: Tensor, axes: MeshAxes) -> CarriedSlice:
    """The slice of this process of one lane's tensor of one leaf."""
    dim = None if leaf.tensor_dim is None or axes.tensor.size == 1 else leaf.tensor_dim - 1
    shape = [size * axes.tensor.size if i == dim else size for i, size in enumerate(values.shape)]
    place = place_of_part(tuple(shape), dim, axes.tensor.rank, tuple(values.shape), 0, values.numel())
    owned = dim is not None or axes.tensor.rank == 0
    return CarriedSlice(f"lanes.{lane}.{leaf.name}", place, values.to(torch.float32, copy=True).flatten(), owned)
