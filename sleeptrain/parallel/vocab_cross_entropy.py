"""The head and its cross-entropy where the vocabulary is divided over the tensor axis, with z-loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sleeptrain.model.language import IGNORED
from sleeptrain.parallel.mesh import MeshAxis


def vocab_parallel_nll(
    x: Tensor, weight: Tensor, targets: Tensor, axis: MeshAxis, vocab: int, z_loss: float = 0.0
) -> Tensor:
    """Negative log likelihoods in nats [batch, time] of targets [batch, time] from normed features [batch, time, width]; 0 where the
    target is -100. `weight`: this process's rows of a head with `vocab` rows, and of padding after them. The logits of all tokens and
    these rows exist at once. A collective over the axis of more than one process."""
    logits = F.linear(x, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    first = axis.rank * weight.shape[0]
    rows = vocab - first
    if rows < weight.shape[0]:
        padding = torch.arange(weight.shape[0], device=x.device) >= rows
        logits = logits.masked_fill(padding, float("-inf"))
    scored = targets != IGNORED
    loss = vocab_parallel_cross_entropy(logits, targets.where(scored, 0), axis, first, z_loss)
    return loss.where(scored, 0)


def vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, axis: MeshAxis, first: int, z_loss: float = 0.0
) -> Tensor:
    """Negative log likelihoods in nats [...] of targets [...] under the softmax of the logits of all processes. Two all-reduces
    over an axis of more than one process.

    logits    [..., rows of the vocabulary of this process], float32 or float64; -inf for padding rows
    targets   int64, entries of the whole vocabulary
    first     the entry of this process's first row
    z_loss    weight of the squared logarithm of the softmax's denominator, which is in the gradient and not in the result

    megatron-core's function of this name has no z-loss, computes in float32 whatever the logits are, and leaves the softmax in them.
    """
    loss: Tensor = _VocabParallelCrossEntropy.apply(logits, targets, axis, first, z_loss)
    return loss


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Saves the softmax of this process's rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, axis: MeshAxis, first: int, z_loss: float) -> Tensor:
        largest = logits.amax(-1)
        if axis.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=axis.group)
        softmax = (logits - largest[..., None]).exp_()
        index = targets - first
        here = (index >= 0) & (index < logits.shape[-1])
        index = index.where(here, 0)[..., None]
        sums = torch.stack([softmax.sum(-1), logits.gather(-1, index)[..., 0].where(here, 0)])
        if axis.size > 1:
            dist.all_reduce(sums, group=axis.group)
        denominator, target = sums
        softmax /= denominator[..., None]
        log_sum_exp = denominator.log() + largest
        ctx.save_for_backward(softmax, index, here, log_sum_exp)
        ctx.z_loss = z_loss
        return log_sum_exp - target

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        softmax, index, here, log_sum_exp = ctx.saved_tensors
        d = softmax * (grad * (1 + 2 * ctx.z_loss * log_sum_exp))[..., None]
        return d.scatter_add_(-1, index, -(grad * here)[..., None]), None, None, None, None
