"""Makes megatron-core's sequence-parallel collectives work without a GPU."""

from __future__ import annotations

import torch


def allow_sequence_parallel_on_cpu() -> None:
    """Makes `torch.cuda.current_device()` return "cpu" if there is no GPU. Call before the first sequence-parallel collective.

    Without it (megatron-core 0.12 to 0.16.1): all-gather and reduce-scatter of tokens raise "Torch not compiled with CUDA
    enabled", since their outputs are allocated on `torch.cuda.current_device()` whatever the device of the input.
    """
    if not torch.cuda.is_available():
        setattr(torch.cuda, "current_device", lambda: "cpu")  # noqa: B010
