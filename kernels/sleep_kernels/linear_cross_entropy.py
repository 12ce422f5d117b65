"""The last linear layer and the cross entropy in one, a slice of tokens at a time: logits of all tokens never exist.

torch 2.13 has torch.nn.functional.linear_cross_entropy with the same aim. Measured on CPU with bfloat16 inputs, its loss
comes back in bfloat16 (error 1.9e-3, here 2e-4), its weight gradient has 2.5 times the error, and torch.compile leaves
the graph at it; in float32 it took fifteen times as long. Hence this one.
"""

from typing import Any

import torch
from torch import Tensor

from sleep_kernels.common import computing_dtype, even_slices, fitting
from sleep_kernels.register import differentiable, once_differentiable, operator

_LEAST = 128  # tokens of a slice, whatever the vocabulary


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *, ignored: int = -100) -> Tensor:
    """Negative log likelihood, in nats, of each target under softmax(x weight^T); 0 where the target is `ignored`.

    x: [..., width], bf16, fp16, fp32 or fp64. weight: [vocab, width], in the dtype of x. targets: [...], int64.

    Returns [...] in float32 (float64 for float64 inputs). Products are in the dtype of x, all else in float32. Backward
    keeps the inputs and one number a token, and computes the logits again; no second derivative.
    Raises ValueError, naming the tensor, for a wrong shape or dtype. A target that is neither a token nor `ignored` is
    an error of torch's, as in torch.nn.functional.cross_entropy.
    """
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a floating-point [..., width]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}; it must be {x.dtype} [vocab, {x.shape[-1]}]")
    if targets.shape != x.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}; it must be int64 {list(x.shape[:-1])}")
    return _LOSS(x, weight, targets, ignored)[0]


def _slices(x: Tensor, weight: Tensor) -> Any:
    """Of tokens. Each reads and writes all of weight's gradient, so that they must not be too short."""
    tokens, row = x.numel() // x.shape[-1], weight.shape[0] * computing_dtype(x).itemsize
    return even_slices(tokens, min(row, fitting(1, x) // _LEAST), x) if tokens else ()


def _forward(x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    dtype = computing_dtype(x)
    nll, total = (x.new_empty(targets.shape, dtype=dtype) for _ in range(2))
    rows, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    for part in _slices(x, weight):
        logits = (rows[part] @ weight.t()).to(dtype)
        scored = wanted[part] != ignored
        chosen = wanted[part].where(scored, 0)
        sums = torch.logsumexp(logits, -1)
        total.view(-1)[part] = sums
        nll.view(-1)[part] = (sums - logits.gather(-1, chosen[:, None])[:, 0]).where(scored, 0)
    return nll, total


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, targets: Tensor, total: Tensor, ignored: int
) -> tuple[Tensor, Tensor]:
    dtype = computing_dtype(x)
    dx = x.new_empty(x.shape)
    # Summed over slices in the wide dtype: in bfloat16 every addition would cost digits.
    d_weight = torch.zeros_like(weight, dtype=dtype)
    rows, wanted, d_rows = x.reshape(-1, x.shape[-1]), targets.reshape(-1), dx.view(-1, x.shape[-1])
    for part in _slices(x, weight):
        scored = wanted[part] != ignored
        scale = grad.reshape(-1)[part].where(scored, 0)[:, None]
        d_logits = (rows[part] @ weight.t()).to(dtype).sub_(total.reshape(-1)[part, None]).exp_().mul_(scale)
        d_logits.scatter_add_(1, wanted[part].where(scored, 0)[:, None], -scale)
        narrow = d_logits.to(x.dtype)
        torch.mm(narrow, weight, out=d_rows[part])
        if narrow.dtype == dtype:
            d_weight.addmm_(narrow.t(), rows[part])
        else:
            d_weight += narrow.t() @ rows[part]
    return dx, d_weight.to(weight.dtype)


def _forward_fake(x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Any:
    return tuple(x.new_empty(targets.shape, dtype=computing_dtype(x)) for _ in range(2))


def _backward_fake(grad: Any, x: Tensor, weight: Tensor, targets: Any, total: Any, ignored: int) -> Any:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, targets, ctx.ignored = inputs
    ctx.save_for_backward(x, weight, targets, output[1])
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_LOSS_BACKWARD(grad, *ctx.saved_tensors, ctx.ignored), None, None


_LOSS = operator(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor targets, int ignored) -> (Tensor nll, Tensor log_sum)",
    _forward,
    _forward_fake,
)
_LOSS_BACKWARD = operator(
    "linear_cross_entropy_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor targets, Tensor log_sum, int ignored) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
differentiable("linear_cross_entropy", _setup, _autograd)
once_differentiable("linear_cross_entropy_backward")
