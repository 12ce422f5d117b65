"""Which dimension of which parameter tensor parallelism shards, and which gradients are partial on each process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sleeptrain.parallel.config import padded_vocab
from sleeptrain.parallel.mesh import MeshAxis

COLUMN_PARALLEL = ("mixer.q", "mixer.k", "mixer.v", "mixer.gate", "mixer.z", "mixer.b", "mixer.a", "mlp.gate", "mlp.up")
"""Column-parallel projections: sharded by output, which are heads or columns of the MLP."""
ROW_PARALLEL = ("mixer.o", "mlp.down")
"""Row-parallel projections: sharded by input; their outputs are summed over the tensor axis."""
PER_HEAD = ("mixer.conv_q", "mixer.conv_k", "mixer.conv_v", "mixer.A_log", "mixer.dt_bias")
"""Other parameters with an entry per head or channel: sharded along dimension 0."""
SHARED_BY_HEADS = ("mixer.q_norm.weight", "mixer.k_norm.weight", "mixer.norm")
"""Replicated parameters that all heads use: each process's gradient is that of its own heads."""
PER_TOKEN = ("norm1.weight", "norm2.weight", "out1.weight", "out2.weight")
"""Replicated parameters between the layers: under sequence parallelism each process's gradient is that of its own tokens. So
are those of the final norm and of gated feedback."""


@dataclass(frozen=True)
class TPLayout:
    """The sharding of a model's parameters over the tensor axis."""

    shapes: Mapping[str, torch.Size]
    """Shapes of the full parameters, by name."""
    axis: MeshAxis

    def dim(self, name: str) -> int | None:
        """The dimension along which a parameter is sharded; None if it is replicated."""
        inner = name.split(".", 2)[2] if name.startswith("layers.") else name
        if inner in PER_HEAD or inner in ("embed.weight", "head.weight"):
            return 0
        module = inner.removesuffix(".weight")
        return 0 if module in COLUMN_PARALLEL else 1 if module in ROW_PARALLEL else None

    def shard(self, name: str, full: Tensor) -> Tensor:
        """This process's shard of a full parameter; embedding and head are padded to `padded_vocab` rows first."""
        dim = self.dim(name)
        if dim is None:
            return full
        if name in ("embed.weight", "head.weight"):
            full = F.pad(full, (0, 0, 0, padded_vocab(full.shape[0], self.axis.size) - full.shape[0]))
        return full.chunk(self.axis.size, dim)[self.axis.rank]

    def has_partial_grad(self, name: str, sequence_parallel: bool) -> bool:
        """Whether a parameter is replicated but its gradient is a partial sum: over a process's heads or its tokens."""
        per_token = name.endswith(PER_TOKEN) or name in ("norm.weight", "feedback.weight")
        return name.endswith(SHARED_BY_HEADS) or (sequence_parallel and per_token)
