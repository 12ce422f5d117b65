"""The last linear layer and the cross entropy in one, a tile of logits at a time: logits of all tokens never exist.

torch 2.13 has torch.nn.functional.linear_cross_entropy with the same aim. Measured on CPU with bfloat16 inputs, its loss
comes back in bfloat16 (error 1.9e-3, here 2e-4), its weight gradient has 2.5 times the error, and torch.compile leaves
the graph at it; in float32 it took fifteen times as long. Hence this one.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import computing_dtype, device_kind, even_slices
from sleep_kernels.register import differentiable, once_differentiable, operator

# Logits of a tile, in bytes of the computing dtype. On a CPU it stays in the last cache, and what works on it does so in
# slices for the first ones.
_TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
# Fewer logits are left to autograd. On a CPU, glibc keeps blocks of this size for the next call; beyond, they are fresh
# pages each time, and to compute logits twice takes less: measured on both sides.
_FEW_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
# Tokens and vocabulary of a tile, at least: every tile reads and writes its part of both gradients, and in bfloat16 that
# would take as long as the products where they are few.
_LEAST = 512
_ALIGNED = 64  # what tiles begin at a multiple of, for the products' sake


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, known: Tensor | None = None, ignored: int = -100
) -> Tensor:
    """Negative log likelihood, in nats, of each target under softmax(x weight^T); 0 where the target is `ignored`.

    x: [..., width], bf16, fp16, fp32 or fp64. weight: [vocab, width], in the dtype of x. targets: [...], int64.
    known: what this function returned for the same tensors, if it was called before: only the gradient is wanted now, and
        nothing is computed until backward.

    Returns [...] in float32 (float64 for float64 inputs). Products are in the dtype of x, all else in float32, and so is
    the logit of the target. Backward keeps the inputs and the result, and computes the logits again; no second
    derivative. Where all logits are less than 32 MiB on a CPU, 256 MiB on a GPU, they are simply kept.
    Raises ValueError, naming the tensor, for a wrong shape or dtype. A target that is neither a token nor `ignored` is
    an error of torch's, as in torch.nn.functional.cross_entropy.
    """
    wide = computing_dtype(x)
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a floating-point [..., width]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}; it must be {x.dtype} [vocab, {x.shape[-1]}]")
    if targets.shape != x.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}; it must be int64 {list(x.shape[:-1])}")
    if known is not None and (known.shape != targets.shape or known.dtype != wide):
        raise ValueError(f"known is {known.dtype} {list(known.shape)}; it must be {wide} {list(targets.shape)}")
    if targets.numel() * weight.shape[0] * wide.itemsize < _FEW_BYTES[device_kind(x)]:
        logits = F.linear(x, weight).to(wide).flatten(0, -2)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=ignored, reduction="none").view(targets.shape)
    return _LOSS(x, weight, targets, None if known is None else known.detach(), ignored)


def _tile(like: Tensor) -> int:
    """Logits of a tile."""
    return _TILE_BYTES[device_kind(like)] // computing_dtype(like).itemsize


def _tiles(x: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
    """How tokens and vocabulary are cut: as few tokens' slices as can be, since each of them sees the whole weight."""
    tokens, vocab = x.shape[0], weight.shape[0]
    columns = min(vocab, max(_LEAST, _tile(x) // tokens))
    return list(_cut(tokens, max(_LEAST, _tile(x) // columns))), list(_cut(vocab, columns))


def _cut(count: int, most: int) -> Iterator[slice]:
    """range(count) in slices of nearly equal length."""
    pieces = -(-count // most)
    length = -(-count // pieces)
    length = -(-length // _ALIGNED) * _ALIGNED
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def forward(x: Tensor, weight: Tensor, targets: Tensor, known: Tensor | None, ignored: int) -> Tensor:
    """The losses, in tiles."""
    if known is not None:
        return known.clone()
    x, shape = x.reshape(-1, x.shape[-1]), targets.shape
    scored = targets.flatten() != ignored
    wanted = targets.flatten().where(scored, 0)
    chosen = _chosen(x, weight, wanted)
    total = torch.full_like(chosen, -torch.inf)
    groups, blocks = _tiles(x, weight)
    for columns in blocks:
        for rows in groups:
            logits = x[rows] @ weight[columns].t()
            for part, here in _slices(logits, rows):
                z = _with(part.to(chosen.dtype), wanted[here] - columns.start, chosen[here])
                # The logarithm of the sum: torch's own takes twice as long.
                log_sum = z.amax(-1) - z.log_softmax(-1).amax(-1)
                total[here] = torch.logaddexp(total[here], log_sum)
    return (total - chosen).where(scored, 0).view(shape)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, targets: Tensor, nll: Tensor, ignored: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight from that of the losses, in tiles."""
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    scored, nll = targets.flatten() != ignored, nll.flatten()
    wanted, grad = targets.flatten().where(scored, 0), grad.flatten().where(scored, 0)
    log_sum = (_chosen(x, weight, wanted) + nll).where(scored, torch.inf)[:, None]
    at_target = grad * torch.expm1(-nll)
    groups, blocks = _tiles(x, weight)
    # What is summed over tiles is wide: in bfloat16 every addition would cost digits.
    d_x = torch.empty_like(x, dtype=x.dtype if len(blocks) == 1 else nll.dtype)
    d_weight = torch.empty_like(weight)
    for columns in blocks:
        d_block = d_weight[columns]
        d_block = d_block if len(groups) == 1 else torch.empty_like(d_block, dtype=nll.dtype)
        for rows in groups:
            logits = x[rows] @ weight[columns].t()
            for part, here in _slices(logits, rows):
                d = part.to(nll.dtype).sub_(log_sum[here]).exp_().mul_(grad[here, None])
                part.copy_(_with(d, wanted[here] - columns.start, at_target[here]))
            _add_product(d_x[rows], logits, weight[columns], first=columns.start == 0)
            _add_product(d_block, logits.t(), x[rows], first=rows.start == 0)
        if len(groups) > 1:
            d_weight[columns] = d_block
    return d_x.to(x.dtype).view(shape), d_weight


def _chosen(x: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """The logit of the wanted token of each row of x, in the computing dtype. The same number both ways, whatever the tiles."""
    wide = computing_dtype(x)
    found = x.new_empty(wanted.shape, dtype=wide)
    for part in even_slices(x.shape[0], x.shape[1] * wide.itemsize, x):
        found[part] = weight.index_select(0, wanted[part]).to(wide).mul_(x[part]).sum(-1)
    return found


def _slices(logits: Tensor, rows: slice) -> Iterator[tuple[Tensor, slice]]:
    """A tile in slices that fit into a core's cache, and which tokens those are; `rows` are the tile's."""
    for part in even_slices(logits.shape[0], logits.shape[1] * computing_dtype(logits).itemsize, logits):
        yield logits[part], slice(rows.start + part.start, rows.start + part.stop)


def _with(z: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """z, with one value of each row overwritten, where its index is within the row."""
    inside = (index >= 0) & (index < z.shape[1])
    index = index.where(inside, 0)[:, None]
    return z.scatter_(1, index, values[:, None].where(inside[:, None], z.gather(1, index)))


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total += a b; the first time total = a b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(a @ b)
    else:
        total.add_(a @ b)


def _forward_fake(x: Tensor, weight: Tensor, targets: Tensor, known: Tensor | None, ignored: int) -> Tensor:
    return x.new_empty(targets.shape, dtype=computing_dtype(x))


def _backward_fake(grad: Any, x: Tensor, weight: Tensor, targets: Any, nll: Any, ignored: int) -> Any:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, targets, _, ctx.ignored = inputs
    ctx.save_for_backward(x, weight, targets, output)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_LOSS_BACKWARD(grad, *ctx.saved_tensors, ctx.ignored), None, None, None


_LOSS = operator(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor targets, Tensor? known, int ignored) -> Tensor",
    forward,
    _forward_fake,
)
_LOSS_BACKWARD = operator(
    "linear_cross_entropy_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor targets, Tensor nll, int ignored) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
differentiable("linear_cross_entropy", _setup, _autograd)
once_differentiable("linear_cross_entropy_backward")
