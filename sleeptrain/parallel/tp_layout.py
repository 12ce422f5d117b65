"""Which parameters tensor parallelism divides, along which dimension, and what each process then sees of a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sleeptrain.parallel.config import padded_vocab
from sleeptrain.parallel.mesh import MeshAxis

COLUMNS = ("mixer.q", "mixer.k", "mixer.v", "mixer.gate", "mixer.z", "mixer.b", "mixer.a", "mlp.gate", "mlp.up")
"""Projections whose outputs belong to heads, or to columns of the MLP."""
ROWS = ("mixer.o", "mlp.down")
"""Projections whose inputs do; their outputs are summed over processes."""
BY_HEAD = ("mixer.conv_q", "mixer.conv_k", "mixer.conv_v", "mixer.A_log", "mixer.dt_bias")
"""Other parameters with an entry for each head or channel."""
SHARED_BY_HEADS = ("mixer.q_norm.weight", "mixer.k_norm.weight", "mixer.norm")
"""Parameters that all heads use: every process has them whole, and sees the gradient of its own heads only."""
BY_TOKEN = ("norm1.weight", "norm2.weight", "out1.weight", "out2.weight")
"""Parameters between the layers: where processes share the tokens, each sees the gradient of its own tokens only. So does
the final norm."""


@dataclass(frozen=True)
class TPLayout:
    """How the parameters of a model lie over the processes of the tensor axis."""

    shapes: Mapping[str, torch.Size]
    """Of the whole parameters, by name."""
    axis: MeshAxis

    def dim(self, name: str) -> int | None:
        """The dimension along which a parameter is divided; None if every process has all of it."""
        inner = name.split(".", 2)[2] if name.startswith("layers.") else name
        if inner in BY_HEAD or inner in ("embed.weight", "head.weight"):
            return 0
        module = inner.removesuffix(".weight")
        return 0 if module in COLUMNS else 1 if module in ROWS else None

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole parameter."""
        dim = self.dim(name)
        if dim is None:
            return whole
        if name in ("embed.weight", "head.weight"):
            whole = F.pad(whole, (0, 0, 0, padded_vocab(whole.shape[0], self.axis.size) - whole.shape[0]))
        return whole.chunk(self.axis.size, dim)[self.axis.rank]

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole of a parameter, or of its gradient, from everybody's parts; a collective over the tensor axis."""
        dim = self.dim(name)
        if dim is None or self.axis.size == 1:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.axis.size)]
        dist.all_gather(parts, part.contiguous(), group=self.axis.group)
        return torch.cat(parts, dim).narrow(0, 0, self.shapes[name][0])

    def partial(self, name: str, share_tokens: bool) -> bool:
        """Whether every process has all of a parameter and sees a part of its gradient: of its heads, or its tokens."""
        between = name.endswith(BY_TOKEN) or name == "norm.weight"
        return name.endswith(SHARED_BY_HEADS) or (share_tokens and between)
