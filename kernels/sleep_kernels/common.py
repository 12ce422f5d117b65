"""What the operators share: the precision they compute in, and slices that fit into a core's cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes that one temporary tensor may take. On a CPU, larger ones leave the cache and, worse, are fresh pages from the
# operating system at every call: measured two to three times slower. A GPU wants few launches.
_TEMPORARY_BYTES = {"cpu": 3 << 18, "cuda": 1 << 28}


def device_kind(tensor: Tensor) -> str:
    """ "cpu", or "cuda" for any accelerator."""
    return "cpu" if tensor.device.type == "cpu" else "cuda"


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def fitting(item_bytes: int, like: Tensor) -> int:
    """How many items of `item_bytes` fit into one temporary on the device of `like`; at least one."""
    return max(1, _TEMPORARY_BYTES[device_kind(like)] // item_bytes)


def even_slices(count: int, item_bytes: int, like: Tensor) -> Iterator[slice]:
    """Cut range(count) into the fewest slices, of nearly equal length, whose temporaries fit."""
    pieces = -(-count // fitting(item_bytes, like))
    width = -(-count // pieces)
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))
