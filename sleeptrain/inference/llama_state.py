"""The state of a session of ours as llama.cpp writes it: caches of the unfinished window, convolution tails, fast weights.

The layout is that of `llama_state_seq_get_data` in llama-cpp-python 0.3.36 (src/llama-kv-cache.cpp, src/llama-memory-recurrent.cpp)
without flash attention.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from sleeptrain.model.config import DeltaNetConfig, Model


def write_state(data: bytearray, model: Model, state: Mapping[str, Tensor]) -> None:
    """Replace all values in `data`, which llama.cpp wrote after as many tokens as the unfinished window of `state` has.

    `state` has the leaves of one row, without the dimension of rows. Raises ValueError where the layout is another one.
    """
    at, g = _Place(data), model.deltanet
    attention = [f"layers.{i}." for i, letter in enumerate(model.pattern) if letter == "A"]
    deltanet = [f"layers.{i}." for i, letter in enumerate(model.pattern) if letter == "G"]
    at.read("Ii")  # a constant, and the number of the text
    streams, cells = at.read("II")
    for _ in range(cells):
        _, sequences, *_ = at.read("iIiii")  # positions in time, height and width, and the token
        at.read(f"{sequences}i")
    transposed, layers = at.read("II")
    if (streams, transposed, layers) != (1, 1, len(attention)):
        raise ValueError(f"{streams} streams of {layers} caches are not in the layout of llama-cpp-python 0.3.36")
    for layer in attention:
        at.read("i")  # its type
        at.write("Q", state[f"{layer}key"].flatten(1))
    for layer in attention:
        at.read("i")
        at.write("II", state[f"{layer}value"].flatten(1).T)
    at.read("IiIII")  # one cell with its position, and the number of layers
    for layer in deltanet:
        at.read("i")
        at.write("Q", _convolution(state[f"{layer}conv"], g))
    for layer in deltanet:
        at.read("i")
        at.write("Q", tiled(state[f"{layer}fast"], g).transpose(1, 2))
    if at.offset != len(data):
        raise ValueError(f"{len(data) - at.offset} bytes of a state are not in the layout of llama-cpp-python 0.3.36")


class _Place:
    """A place in data, which moves on."""

    def __init__(self, data: bytearray) -> None:
        self._data, self.offset = data, 0

    def read(self, form: str) -> tuple[int, ...]:
        """Numbers in little-endian order without padding, as struct names them."""
        found = struct.unpack_from(f"<{form}", self._data, self.offset)
        self.offset += struct.calcsize(f"<{form}")
        return found

    def write(self, size: str, values: Tensor) -> None:
        """Replace values after numbers that describe their size, of which the last one or their product is that of a row."""
        self.read(size)
        content = values.float().contiguous().numpy().tobytes()
        self._data[self.offset : self.offset + len(content)] = content
        self.offset += len(content)


def _convolution(tail: Tensor, g: DeltaNetConfig) -> Tensor:
    """The last inputs [taps-1, key_heads, channels] of a convolution as [channels, taps-1]: all queries, keys, then values."""
    taps, d = len(tail), g.head_dim
    q, k, v = tail.split([d, d, tail.shape[2] - 2 * d], 2)
    heads = v.reshape(taps, g.key_heads, -1, d).transpose(1, 2)
    return torch.cat([part.reshape(taps, -1) for part in (q, k, heads)], 1).T


def tiled(heads: Tensor, g: DeltaNetConfig) -> Tensor:
    """Value heads [value_heads, ...] in llama.cpp's order, which repeats the key heads as a whole.

    Ours has the value heads of one key head beside each other; theirs has the first ones of all key heads, then the second ones.
    """
    return heads.unflatten(0, (g.key_heads, -1)).transpose(0, 1).flatten(0, 1)
