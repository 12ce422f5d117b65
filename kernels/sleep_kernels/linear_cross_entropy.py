"""Fused output projection and cross-entropy, computed in tiles so that the logits of all tokens never exist at once.

torch 2.13 has torch.nn.functional.linear_cross_entropy for the same purpose. Measured on CPU with bfloat16 inputs, it returns
the loss in bfloat16 (error 1.9e-3, here 2e-4), its weight gradient has 2.5 times the error, and it breaks the graph of
torch.compile; in float32 it takes fifteen times as long.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from sleep_kernels.common import compute_dtype, device_kind, even_slices
from sleep_kernels.register import forbid_double_backward, register_backward, register_operator

# Size of a tile of logits, in bytes of the compute dtype. On a CPU a tile fits into the last-level cache; elementwise work on
# it is sliced to fit into a core's own cache.
_TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
# Below this size of all logits, autograd saves them. On a CPU, glibc reuses freed blocks up to this size; larger blocks are
# fresh pages at every call, and recomputing the logits is faster, as measured on both sides of the limit.
_UNTILED_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
# Smallest number of tokens and of vocabulary entries of a tile. Every tile reads and writes its part of both gradients, which
# in bfloat16 takes as long as the products if the tile is small.
_MIN_TILE = 512
_TILE_ALIGNMENT = 64  # tiles start at a multiple of this, for fast matrix products


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, known: Tensor | None = None, ignored: int = -100, z_loss: float = 0.0
) -> Tensor:  # fmt: skip
    """Negative log likelihood, in nats, of each target under softmax(x weight^T); 0 where the target is `ignored`.

    x: [..., width], bf16, fp16, fp32 or fp64. weight: [vocab, width], in the dtype of x. targets: [...], int64.
    known: the result of an earlier call with the same tensors, if there was one. Forward then returns a copy of it without
        computing anything; backward is unchanged.
    z_loss: the gradient is that of the result plus z_loss log(sum(exp(x weight^T)))^2 of every target. The result is without it.

    Returns [...] in float32 (float64 for float64 inputs). Matrix products are in the dtype of x, everything else, the
    targets' logits included, in float32. Backward saves the inputs and the result and recomputes the logits; there is no
    second derivative. If all logits take less than 32 MiB on a CPU or 256 MiB on a GPU, they are saved instead.
    Raises ValueError, naming the tensor, for a wrong shape or dtype. For a target that is neither in the vocabulary nor
    `ignored`, torch raises an error as in torch.nn.functional.cross_entropy.
    """
    wide = compute_dtype(x)
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be a floating-point [..., width]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}; it must be {x.dtype} [vocab, {x.shape[-1]}]")
    if targets.shape != x.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}; it must be int64 {list(x.shape[:-1])}")
    if known is not None and (known.shape != targets.shape or known.dtype != wide):
        raise ValueError(f"known is {known.dtype} {list(known.shape)}; it must be {wide} {list(targets.shape)}")
    if targets.numel() * weight.shape[0] * wide.itemsize < _UNTILED_BYTES[device_kind(x)]:
        logits = F.linear(x, weight).to(wide).flatten(0, -2)
        nll = F.cross_entropy(logits, targets.flatten(), ignore_index=ignored, reduction="none")
        if z_loss:
            scored = targets.flatten() != ignored
            # log(Z) from the loss: logsumexp would save the logits once more.
            target_logits = logits.gather(-1, targets.flatten().where(scored, 0)[:, None])[:, 0]
            square = (nll + target_logits).square().where(scored, 0)
            nll = nll + z_loss * (square - square.detach())  # which adds zeros, with a gradient
        return nll.view(targets.shape)
    return _LOSS(x, weight, targets, None if known is None else known.detach(), ignored, z_loss)


def _tile_size(like: Tensor) -> int:
    """Number of logits of a tile."""
    return _TILE_BYTES[device_kind(like)] // compute_dtype(like).itemsize


def _tiles(x: Tensor, weight: Tensor) -> tuple[list[slice], list[slice]]:
    """Tiles of the tokens and of the vocabulary. As few token tiles as possible, because each of them reads all weights."""
    tokens, vocab = x.shape[0], weight.shape[0]
    columns = min(vocab, max(_MIN_TILE, _tile_size(x) // tokens))
    groups, blocks = _even_tiles(tokens, max(_MIN_TILE, _tile_size(x) // columns)), _even_tiles(vocab, columns)
    return _representative(list(groups), x), _representative(list(blocks), x)


def _even_tiles(count: int, most: int) -> Iterator[slice]:
    """Partition range(count) into aligned slices of nearly equal length."""
    pieces = -(-count // most)
    length = -(-count // pieces)
    length = -(-length // _TILE_ALIGNMENT) * _TILE_ALIGNMENT
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def _representative(tiles: list[slice], like: Tensor) -> list[slice]:
    """The tiles that are computed. Fake tensors, of which only the memory matters, run the first two and the last: the others allocate
    as the second one does."""
    return [*tiles[:2], tiles[-1]] if len(tiles) > 3 and is_fake(like) else tiles


def forward(x: Tensor, weight: Tensor, targets: Tensor, known: Tensor | None, ignored: int, z_loss: float) -> Tensor:
    """Losses of all targets, computed in tiles; `z_loss` matters to backward alone."""
    if known is not None:
        return known.clone()
    x, shape = x.reshape(-1, x.shape[-1]), targets.shape
    scored = targets.flatten() != ignored
    target_ids = targets.flatten().where(scored, 0)
    target_logits = _target_logits(x, weight, target_ids)
    log_sum_exp = torch.full_like(target_logits, -torch.inf)
    groups, blocks = _tiles(x, weight)
    for columns in blocks:
        for rows in groups:
            logits = x[rows] @ weight[columns].t()
            for part, here in _row_slices(logits, rows):
                z = _put_in_rows(part.to(target_logits.dtype), target_ids[here] - columns.start, target_logits[here])
                # log(sum(exp(z))) through log_softmax, because torch.logsumexp takes twice as long.
                tile_log_sum_exp = z.amax(-1) - z.log_softmax(-1).amax(-1)
                log_sum_exp[here] = torch.logaddexp(log_sum_exp[here], tile_log_sum_exp)
    return (log_sum_exp - target_logits).where(scored, 0).view(shape)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, targets: Tensor, nll: Tensor, ignored: int, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, computed in tiles; `grad` is the gradient of the losses."""
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    scored, nll = targets.flatten() != ignored, nll.flatten()
    target_ids, grad = targets.flatten().where(scored, 0), grad.flatten().where(scored, 0)
    log_sum_exp = _target_logits(x, weight, target_ids) + nll
    z_grad = 2 * z_loss * grad * log_sum_exp.where(scored, 0)
    at_target = grad * torch.expm1(-nll) + z_grad * torch.exp(-nll)
    grad, log_sum_exp = grad + z_grad, log_sum_exp.where(scored, torch.inf)[:, None]
    groups, blocks = _tiles(x, weight)
    # Gradients that are accumulated over tiles are float32: in bfloat16 every addition would lose digits.
    d_x = torch.empty_like(x, dtype=x.dtype if len(blocks) == 1 else nll.dtype)
    d_weight = torch.empty_like(weight)
    for columns in blocks:
        d_block = d_weight[columns]
        d_block = d_block if len(groups) == 1 else torch.empty_like(d_block, dtype=nll.dtype)
        for rows in groups:
            logits = x[rows] @ weight[columns].t()
            for part, here in _row_slices(logits, rows):
                d = part.to(nll.dtype).sub_(log_sum_exp[here]).exp_().mul_(grad[here, None])
                part.copy_(_put_in_rows(d, target_ids[here] - columns.start, at_target[here]))
            _add_product(d_x[rows], logits, weight[columns], first=columns.start == 0)
            _add_product(d_block, logits.t(), x[rows], first=rows.start == 0)
        if len(groups) > 1:
            d_weight[columns] = d_block
    return d_x.to(x.dtype).view(shape), d_weight


def _target_logits(x: Tensor, weight: Tensor, target_ids: Tensor) -> Tensor:
    """The target's logit of each row of x in the compute dtype: the same number in forward and backward, for any tiling."""
    wide = compute_dtype(x)
    found = x.new_empty(target_ids.shape, dtype=wide)
    for part in even_slices(x.shape[0], x.shape[1] * wide.itemsize, x):
        found[part] = weight.index_select(0, target_ids[part]).to(wide).mul_(x[part]).sum(-1)
    return found


def _row_slices(logits: Tensor, rows: slice) -> Iterator[tuple[Tensor, slice]]:
    """Slices of a tile that fit into a core's cache, and their token ranges; `rows` is the tile's token range."""
    for part in even_slices(logits.shape[0], logits.shape[1] * compute_dtype(logits).itemsize, logits):
        yield logits[part], slice(rows.start + part.start, rows.start + part.stop)


def _put_in_rows(z: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Overwrite one element of each row of z in place, skipping rows whose index is out of range."""
    inside = (index >= 0) & (index < z.shape[1])
    index = index.where(inside, 0)[:, None]
    return z.scatter_(1, index, values[:, None].where(inside[:, None], z.gather(1, index)))


def _add_product(log_sum_exp: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """log_sum_exp += a b; the first time log_sum_exp = a b."""
    if log_sum_exp.dtype == a.dtype:
        log_sum_exp.addmm_(a, b, beta=0 if first else 1)
    elif first:
        log_sum_exp.copy_(a @ b)
    else:
        log_sum_exp.add_(a @ b)


def _forward_fake(x: Tensor, weight: Tensor, targets: Tensor, known: Any, ignored: int, z_loss: float) -> Tensor:
    return x.new_empty(targets.shape, dtype=compute_dtype(x))


def _backward_fake(grad: Any, x: Tensor, weight: Tensor, targets: Any, nll: Any, ignored: int, z_loss: float) -> Any:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, targets, _, ctx.ignored, ctx.z_loss = inputs
    ctx.save_for_backward(x, weight, targets, output)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_LOSS_BACKWARD(grad, *ctx.saved_tensors, ctx.ignored, ctx.z_loss), None, None, None, None


_LOSS = register_operator(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor targets, Tensor? known, int ignored, float z_loss) -> Tensor",
    forward,
    _forward_fake,
)
_LOSS_BACKWARD = register_operator(
    "linear_cross_entropy_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor targets, Tensor nll, int ignored, float z_loss) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
register_backward("linear_cross_entropy", _setup, _autograd)
forbid_double_backward("linear_cross_entropy_backward")
