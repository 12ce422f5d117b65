"""Fused output projection and cross-entropy against separate operators: CPU time and memory on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from allocated import allocated
from figures import Figure, interleaved, median_ratio, part
from torch import Tensor

from sleep_kernels import linear_cross_entropy

WIDTH = 256
SHAPES = {256: 4096, 4096: 4096, 32768: 1024}
"""Tokens of a micro-batch's window, by vocabulary size."""
NO_SLOWER = 1.1
"""Allowed ratio of CPU times; the fused operator recomputes the logits where the separate ones save them."""
Loss = Callable[..., Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]


def separate(x: Tensor, weight: Tensor, targets: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Linear layer, then cross-entropy over all logits in float32."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none")


def inputs_of(vocab: int, tokens: int, width: int, dtype: torch.dtype) -> Inputs:
    """Features, weight and targets, a seventh of them ignored."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (0.06 * torch.randn(vocab, width, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    targets[::7] = -100
    return x, weight, targets


def once(loss: Loss, inputs: Inputs) -> None:
    """Forward with grad and backward, as under `train.recompute=none`."""
    found = loss(*inputs)
    torch.autograd.grad(found.mean(), inputs[:2])


def twice(loss: Loss, inputs: Inputs) -> None:
    """Forward without grad, recomputation with grad, and backward, as under the other policies."""
    with torch.no_grad():
        known = loss(*inputs)
    torch.autograd.grad(loss(*inputs, known=known).mean(), inputs[:2])


def seconds(work: Callable[[], None], calls: int) -> float:
    """CPU time of this process per call, after an untimed call, which pays for memory that other contenders left behind."""
    work()
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


def kept(loss: Loss, inputs: Inputs) -> int:
    """Bytes saved for backward, without the inputs."""
    sizes: dict[int, int] = {}
    known = {tensor.data_ptr() for tensor in inputs}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss(*inputs)
    del found
    return sum(sizes.values())


def figures(quick: bool) -> list[Figure]:
    """Ratios of times, and memory in MiB, for each dtype and vocabulary."""
    torch.set_num_threads(1)
    found, rounds, width = [], 1 if quick else 5, 16 if quick else WIDTH
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for vocab, tokens in ({8192: 1024} if quick else SHAPES).items():
            inputs, what = inputs_of(vocab, tokens, width, dtype), f"loss, {name}, vocabulary {vocab}, {tokens} tokens"
            for mode, label in ((once, "time, recompute none"), (twice, "time, other policies")):
                calls = 1 if quick else max(1, 2**24 // (vocab * tokens))
                runs = {
                    loss.__name__: partial(seconds, partial(mode, loss, inputs), calls)
                    for loss in (linear_cross_entropy, separate)
                }
                times = interleaved(runs, rounds)
                ratio = median_ratio(times["linear_cross_entropy"], times["separate"])
                best = {loss: 1e3 * min(series) for loss, series in times.items()}
                found.append(Figure(f"{what}: {label}", ratio, "x separate", at_most=NO_SLOWER, detail={"ms": best}))
            for label, size in (
                ("kept", kept),
                ("peak", lambda loss, inputs: allocated(partial(once, loss, inputs))[1]),
            ):
                ours, theirs = (size(loss, inputs) / 2**20 for loss in (linear_cross_entropy, separate))
                found.append(
                    Figure(f"{what}: {label}", ours, "MiB", at_most=1.01 * theirs, detail={"separate": theirs})
                )
    return found


if __name__ == "__main__":
    part(figures, __doc__, ["torch"])
