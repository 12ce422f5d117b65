"""Short causal depthwise convolution whose taps differ from token to token, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import compute_dtype
from sleep_kernels.delta_inputs import convolution_reach, packing


def dynamic_conv(
    x: Tensor,
    taps: Tensor,
    static: Tensor,
    tail: Tensor | None = None,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal convolution of each channel, with taps of each token: with p = cat(tail, x),

        y[t] = silu(sum_j (taps[t, :, j] + static[:, j]) * p[t + j])

    x: [batch, time, channels], bf16, fp16, fp32 or fp64.
    taps: [batch, time, channels, kernel], in the dtype of x. static: [channels, kernel], in the dtype of x or float32.
    tail: [batch, kernel - 1, channels], in the dtype of x: the kernel - 1 inputs before x; None means zeros.
    valid: [batch, time], bool, false for padding at any position; None means that all tokens are real. A padded token is
        skipped: the convolution reads consecutive real tokens only, and the result of a padded token is 0.
    starts: [batch, time], bool, true for the first token of every document that begins here; None means that none does. The
        convolution reads tokens of one document only, with zeros before its first token.

    Returns y, in the shape and dtype of x, and the new tail, the last kernel - 1 real tokens of p, zeros in place of those of
    earlier documents than the newest. Computed in float32 (float64 for float64); differentiated by autograd.
    Raises ValueError, naming the tensor, for a wrong shape.
    Source: the dynamic convolution of Jet-Nemotron, arXiv 2508.15884.
    """
    _check(x, taps, static, tail)
    (batch, time, channels), history = x.shape, static.shape[1] - 1
    padded = torch.cat([x.new_zeros(batch, history, channels) if tail is None else tail, x], 1)
    position = None if valid is None else _positions(valid, history)
    reach = None if starts is None else convolution_reach(starts, valid, None, history)
    wide = compute_dtype(x)
    z = x.new_zeros(x.shape, dtype=wide)
    for j in range(history + 1):
        read = _tokens_before(padded, history - j, time, position)
        if reach is not None:
            read = read.masked_fill((reach[:, history:] < history - j)[..., None], 0)
        z = z + (taps[..., j].to(wide) + static[:, j].to(wide)) * read.to(wide)
    y = F.silu(z).to(x.dtype)
    return y if valid is None else y.masked_fill(~valid[..., None], 0), _newest(padded, time, position, reach)


def _check(x: Tensor, taps: Tensor, static: Tensor, tail: Tensor | None) -> None:
    """Raise ValueError for the first tensor of a wrong shape."""
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x has shape {list(x.shape)}; it must be [batch, time, channels], none of them 0")
    batch, time, channels = x.shape
    if static.dim() != 2 or static.shape[0] != channels or static.shape[1] == 0:
        raise ValueError(f"static has shape {list(static.shape)}; it must be [{channels} channels, kernel]")
    kernel = static.shape[1]
    wanted = (("taps", taps, (batch, time, channels, kernel)), ("tail", tail, (batch, kernel - 1, channels)))
    for name, tensor, shape in wanted:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def _positions(valid: Tensor, history: int) -> Tensor:
    """The positions of cat(tail, x) in packed order, padding first: int64 [batch, history + time]."""
    order = packing(valid, history).to(torch.int64)
    return torch.where(order < 0, -1 - order, order)


def _tokens_before(padded: Tensor, distance: int, time: int, position: Tensor | None) -> Tensor:
    """For every token of x the token `distance` real ones before it [batch, time, channels]; undefined for padded tokens."""
    history = padded.shape[1] - time
    if position is None or distance == 0:
        return padded.narrow(1, history - distance, time)
    rank = torch.empty_like(position)
    rank.scatter_(1, position, torch.arange(position.shape[1], device=position.device).expand_as(position))
    return _gather(padded, position.gather(1, (rank[:, history:] - distance).clamp(min=0)))


def _newest(padded: Tensor, time: int, position: Tensor | None, reach: Tensor | None) -> Tensor:
    """The newest real tokens [batch, kernel - 1, channels], with zeros in place of those of earlier documents."""
    last = padded[:, time:] if position is None else _gather(padded, position[:, time:])
    if reach is None:
        return last
    of_newest = reach[:, -1:] if position is None else reach.gather(1, position[:, -1:])
    distance = torch.arange(last.shape[1] - 1, -1, -1, device=last.device)
    return last.masked_fill((distance > of_newest)[..., None], 0)


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(*index.shape, tokens.shape[2]))
