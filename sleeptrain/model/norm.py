"""RMSNorm in float32 with a zero-centred weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """`x / rms(x) * (1 + weight)` over the last dimension, computed in float32 or float64 and returned in x's dtype.

    The zero-centred weight is that of the Qwen3-Next and Qwen3.5 blocks (Hugging Face transformers, `qwen3_5`).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), x.shape[-1:], 1 + self.weight.to(wide), self.eps).to(x.dtype)
