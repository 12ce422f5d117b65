"""Lets megatron-core share sequences on a machine without a GPU."""

from __future__ import annotations

import torch


def allow_sequences_on_cpu() -> None:
    """Call before features are gathered or scattered along their tokens; it does nothing where there is a GPU.

    Without it (megatron-core 0.12 to 0.16.1) both end in an error of torch's, "Torch not compiled with CUDA enabled": the
    results are allocated on `torch.cuda.current_device()`, whatever the device of what is gathered.
    """
    if not torch.cuda.is_available():
        setattr(torch.cuda, "current_device", lambda: "cpu")  # noqa: B010
