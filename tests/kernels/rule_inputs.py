"""Random inputs of the gated delta rule, and its results and gradients for them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels import gated_delta_rule


def make_inputs(
    time: int = 70,
    batch: int = 1,
    key_heads: int = 1,
    group: int = 1,
    d_k: int = 16,
    d_v: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Arguments of gated_delta_rule by name; group is the number of value heads per key head."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    heads = key_heads * group
    return {
        "q": F.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "k": F.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "v": normal(batch, time, heads, d_v),
        "g": -torch.rand(batch, time, heads, generator=generator, dtype=dtype),
        "beta": torch.rand(batch, time, heads, generator=generator, dtype=dtype),
        "initial_state": normal(batch, heads, d_k, d_v),
    }


def run(inputs: dict[str, Tensor], backend: str, **options: float) -> dict[str, Tensor]:
    """Outputs and all gradients, for random gradients of both outputs."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    o, final = gated_delta_rule(**leaves, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (o, final)]
    grads = torch.autograd.grad([o, final], list(leaves.values()), weights)
    return {"o": o.detach(), "final_state": final.detach(), **dict(zip(leaves, grads, strict=True))}
