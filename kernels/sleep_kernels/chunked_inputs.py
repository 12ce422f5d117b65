"""The inputs of the gated delta rule in plain torch, with a backward that keeps nothing but its own inputs.

q, k and v are worked on side by side, [rows, positions, channels of q | k | v], for slices of the batch that fit into a
core's cache (see common.py). Where there is padding, positions are packed: real tokens stand together (see
`delta_inputs.packing`), go through the convolution as one piece, and are moved back.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import computing_dtype, even_slices
from sleep_kernels.short_conv import add_gradients, convolve

EPS = 1e-6  # of the L2 norm


def log_decay(a: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """-exp(a_log) softplus(a + dt_bias), at least in float32; `a` [..., heads], the others [heads]."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return -a_log.to(wide).exp() * F.softplus(a.to(wide) + dt_bias.to(wide))


def forward(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, conv_q: Tensor, conv_k: Tensor, conv_v: Tensor,
    a_log: Tensor, dt_bias: Tensor, tail: Tensor | None, order: Tensor | None, key_heads: int, strength: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """q, k, v, g, beta and the new tail, as in `sleep_kernels.delta_inputs`, with its `valid` as `packing` returns it."""
    (batch, time, keys), wide, taps = q.shape, computing_dtype(q), _taps(conv_q, conv_k, conv_v)
    d, before, widths = keys // key_heads, taps.shape[0] - 1, [keys, keys, v.shape[2]]
    results = [t.new_empty((batch, time, t.shape[2] // d, d)) for t in (q, k, v)]
    end = q.new_empty((batch, before, key_heads, taps.shape[1] // key_heads))
    for part in even_slices(batch, (before + time) * taps.shape[1] * wide.itemsize, q):
        moved = None if order is None else _of(order, part)
        held = _held([_of(t, part) for t in (q, k, v)], None if tail is None else _of(tail, part), moved, taps)
        y = F.silu(convolve(held, taps), inplace=True)
        heads = _normed_heads(y, keys, d)
        heads.mul_(_inverse_norm(heads))
        if moved is not None:
            y = _put(F.pad(y, (0, 0, before, 0)).masked_fill_((moved < 0)[..., None], 0), moved)[:, before:]
        for result, channels in zip(results, y.split_with_sizes(widths, 2), strict=True):
            _of(result, part).flatten(2).copy_(channels)
        _by_head(held.narrow(1, time, before), _of(end, part), keys)
    g = log_decay(a.to(wide), a_log, dt_bias)
    beta = torch.sigmoid(b.to(wide)).mul_(strength)
    return *results, _kept(g, order), _kept(beta, order), end


def backward(
    grads: Sequence[Tensor],
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, conv_q: Tensor, conv_k: Tensor, conv_v: Tensor,
    a_log: Tensor, dt_bias: Tensor, tail: Tensor | None, order: Tensor | None, key_heads: int, strength: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the ten tensors before the tail, and of the tail, from those of the results."""
    *d_results, dg, d_beta, d_end = grads
    (batch, time, keys), taps = q.shape, _taps(conv_q, conv_k, conv_v)
    d, before = keys // key_heads, taps.shape[0] - 1
    widths = [keys, keys, v.shape[2]]
    d_inputs, d_tail, d_taps = [torch.empty_like(t) for t in (q, k, v)], torch.empty_like(d_end), torch.zeros_like(taps)
    for part in even_slices(batch, (before + time) * taps.shape[1] * taps.itemsize, q):
        moved = None if order is None else order[part]
        held = _held([t[part] for t in (q, k, v)], None if tail is None else tail[part], moved, taps)
        dy = torch.cat([t[part].flatten(2) for t in d_results], 2).to(taps.dtype)
        if moved is not None:
            dy = _take(F.pad(dy, (0, 0, before, 0)), moved).masked_fill_((moved < before)[..., None], 0)[:, before:]
        dz = _d_activation(dy, convolve(held, taps), keys, d)
        d_held = torch.zeros_like(held)
        _from_heads(d_end[part], d_held[:, time:], keys)
        add_gradients(dz, held, taps, d_held, d_taps)
        d_held = d_held if moved is None else _put(d_held, moved)
        _by_head(d_held[:, :before], d_tail[part], keys)
        for result, channels in zip(d_inputs, d_held[:, before:].split(widths, 2), strict=True):
            result[part].copy_(channels)
    weights = zip(d_taps.t().split(widths), (conv_q, conv_k, conv_v), strict=True)
    d_convs = [part.to(weight.dtype).contiguous() for part, weight in weights]
    da, db, *d_heads = _d_gates(_kept(dg, order), _kept(d_beta, order), a, b, a_log, dt_bias, order, strength)
    return *d_inputs, da, db, *d_convs, *d_heads, d_tail


def _taps(*convs: Tensor) -> Tensor:
    """[kernel, all channels] in the computing dtype."""
    return torch.cat(convs).t().to(computing_dtype(convs[0])).contiguous()


def _held(parts: list[Tensor], tail: Tensor | None, order: Tensor | None, taps: Tensor) -> Tensor:
    """cat(tail, x) of all channels; packed, padding in front of everything and zero."""
    (rows, time, keys), before = parts[0].shape, taps.shape[0] - 1
    held = taps.new_empty((rows, before + time, taps.shape[1]))
    first, inputs = held.narrow(1, 0, before), held.narrow(1, before, time)
    for channels, part in zip(inputs.split_with_sizes([t.shape[2] for t in parts], 2), parts, strict=True):
        channels.copy_(part)
    if tail is None:
        first.zero_()
    else:
        _from_heads(tail, first, keys)
    return held if order is None else _take(held, order).masked_fill_((order < 0)[..., None], 0)


def _d_activation(dy: Tensor, z: Tensor, keys: int, d: int) -> Tensor:
    """From the adjoint of what leaves SiLU and norm to that of what enters; `dy` is overwritten."""
    y = F.silu(z[..., : 2 * keys])
    heads, d_heads = y.unflatten(2, (-1, d)), _normed_heads(dy, keys, d)
    inverse = _inverse_norm(heads)
    normal = heads.mul_(inverse)
    along = (d_heads * normal).sum(-1, keepdim=True)
    d_heads.addcmul_(normal, along, value=-1).mul_(inverse)
    return torch.ops.aten.silu_backward(dy, z)


def _d_gates(
    dg: Tensor, d_beta: Tensor, a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor, order: Tensor | None, strength: float
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of a, b, a_log and dt_bias."""
    wide = dg.dtype
    rate, speed = -a_log.to(wide).exp(), _kept(a.to(wide) + dt_bias.to(wide), order)
    d_rate = (dg * F.softplus(speed)).sum((0, 1))
    d_speed = torch.ops.aten.softplus_backward(dg * rate, speed, 1.0, 20.0)
    share = torch.sigmoid(_kept(b.to(wide), order))
    db = d_beta * share * (1 - share) * strength
    d_bias = d_speed.sum((0, 1)).to(dt_bias.dtype)
    return d_speed.to(a.dtype), db.to(b.dtype), (d_rate * rate).to(a_log.dtype), d_bias


def _normed_heads(y: Tensor, keys: int, d: int) -> Tensor:
    """Queries and keys of all channels, [rows, positions, 2 * key_heads, d]: a view."""
    return y.narrow(2, 0, 2 * keys).view(y.shape[0], y.shape[1], -1, d)


def _inverse_norm(heads: Tensor) -> Tensor:
    return torch.rsqrt_((heads * heads).sum(-1, keepdim=True).add_(EPS))


def _by_head(x: Tensor, out: Tensor, keys: int) -> None:
    """Write channels laid out q | k | v into a tail, which has all of a key head together."""
    for there, here in _side_by_side(out, x, keys):
        there.copy_(here)


def _from_heads(tail: Tensor, out: Tensor, keys: int) -> None:
    """The inverse of `_by_head`."""
    for there, here in _side_by_side(tail, out, keys):
        here.copy_(there)


def _side_by_side(tail: Tensor, x: Tensor, keys: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The q, k and v of a tail [rows, positions, key_heads, channels] and of channels laid out q | k | v: views, alike in shape."""
    heads, widths = tail.shape[2], [keys, keys, x.shape[2] - 2 * keys]
    there = tail.split_with_sizes([width // heads for width in widths], 3)
    for part, channels in zip(there, x.split_with_sizes(widths, 2), strict=True):
        yield part, channels.view(part.shape)


def _of(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor; itself where they are all: a view takes as long as work on a single token."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _kept(gates: Tensor, order: Tensor | None) -> Tensor:
    """0 where a token [batch, time, heads] is padding."""
    if order is None:
        return gates
    padding = _put((order < 0)[..., None], order)
    return gates.masked_fill(padding[:, order.shape[1] - gates.shape[1] :], 0)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Rows of x [batch, before + time, channels] in the order of packing."""
    return x.flatten(0, 1).index_select(0, _rows(order)).view(x.shape)


def _put(x: Tensor, order: Tensor) -> Tensor:
    """The inverse of `_take`."""
    return torch.empty_like(x).flatten(0, 1).index_copy_(0, _rows(order), x.flatten(0, 1)).view(x.shape)


def _rows(order: Tensor) -> Tensor:
    """Of all sequences one after the other. Whole rows are moved at once: on CPU much faster than element by element."""
    first = torch.arange(0, order.numel(), order.shape[1], device=order.device)[:, None]
    return (torch.where(order < 0, -1 - order, order) + first).flatten()
