"""Parts that the operators share: compute dtype, slicing to fit a core's cache, and their tensor arguments."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Largest size of one temporary tensor in bytes. On a CPU, larger temporaries do not fit into the cache, and glibc maps fresh
# pages for them at every call: two to three times slower as measured. On a GPU, large slices mean few launches.
_TEMPORARY_BYTES = {"cpu": 3 << 18, "cuda": 1 << 28}


def device_kind(tensor: Tensor) -> str:
    """ "cpu", or "cuda" for any accelerator."""
    return "cpu" if tensor.device.type == "cpu" else "cuda"


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def max_items_per_slice(item_bytes: int, like: Tensor) -> int:
    """Number of items of `item_bytes` that fit into one temporary on the device of `like`; at least one."""
    return max(1, _TEMPORARY_BYTES[device_kind(like)] // item_bytes)


def even_slices(count: int, item_bytes: int, like: Tensor) -> Iterator[slice]:
    """Partition range(count) into the fewest slices of nearly equal length whose temporaries fit."""
    pieces = -(-count // max_items_per_slice(item_bytes, like))
    width = -(-count // pieces)
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


class RuleArguments(NamedTuple):
    """Arguments of `sleep_kernels.gated_delta_rule`, already checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Tensor | None
    scale: float
    resets: bool


class DeltaInputTensors(NamedTuple):
    """Tensor arguments of the operator `sleep_kernels::delta_inputs`; shapes as in `sleep_kernels.delta_inputs`."""

    qkv: Tensor
    ba: Tensor
    conv_q: Tensor
    conv_k: Tensor
    conv_v: Tensor
    a_log: Tensor
    dt_bias: Tensor
    tail: Tensor | None
    order: Tensor | None
    """The result of `delta_inputs.packing`; None where no token is padding."""
    reach: Tensor | None
    """The result of `delta_inputs.convolution_reach`; None where no document begins."""
