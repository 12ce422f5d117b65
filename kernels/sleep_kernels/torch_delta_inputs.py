"""delta_inputs in plain torch, forward and backward; backward saves only the inputs of forward.

q, k and v are processed side by side as [rows, positions, channels of q | k | v], in batch slices that fit into a core's
cache (see common.py). Padded rows are packed: padding is moved to the front (see `delta_inputs.packing`), so that one
convolution runs over consecutive real tokens, and the result is moved back.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sleep_kernels.common import DeltaInputTensors, compute_dtype, even_slices
from sleep_kernels.short_conv import convolve, convolve_backward

EPS = 1e-6  # of the L2 norm


def log_decay(a: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """-exp(a_log) softplus(a + dt_bias), at least in float32. a: [..., heads]; a_log, dt_bias: [heads]."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return -a_log.to(dtype).exp() * F.softplus(a.to(dtype) + dt_bias.to(dtype))


def forward(t: DeltaInputTensors, key_heads: int, strength: float) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and the new tail, as `sleep_kernels.delta_inputs` returns them."""
    x, key_width, dtype, taps = t.qkv, t.conv_q.shape[0], compute_dtype(t.qkv), _taps(t)
    batch, time, _ = x.shape
    d, history, widths = key_width // key_heads, taps.shape[0] - 1, _widths(t)
    results = [x.new_empty((batch, time, width // d, d)) for width in widths]
    new_tail = x.new_empty((batch, history, key_heads, taps.shape[1] // key_heads))
    for rows in even_slices(batch, (history + time) * taps.shape[1] * dtype.itemsize, x):
        padded, packing, reach = _conv_inputs(t, rows, taps)
        y = F.silu(convolve(padded, taps, reach), inplace=True)
        heads = _qk_heads(y, key_width, d)
        heads.mul_(inverse_norm(heads))
        if packing is not None:
            y = _unpack(F.pad(y, (0, 0, history, 0)).masked_fill_((packing < 0)[..., None], 0), packing)[:, history:]
        for result, channels in zip(results, y.split_with_sizes(widths, 2), strict=True):
            _batch_slice(result, rows).flatten(2).copy_(channels)
        last = _within_document(padded.narrow(1, time, history), reach)
        _to_tail_layout(last, _batch_slice(new_tail, rows), key_width)
    b, a = t.ba.to(dtype).chunk(2, 2)
    g = _fill_starts(log_decay(a, t.a_log, t.dt_bias), t, -torch.inf)
    beta = torch.sigmoid(b).mul_(strength)
    return *results, _zero_padding(g, t.order), _zero_padding(beta, t.order), new_tail


def backward(grads: Sequence[Tensor], t: DeltaInputTensors, key_heads: int, strength: float) -> tuple[Tensor, ...]:
    """Gradients of the tensors qkv ... dt_bias and of the tail; `grads` are those of forward's results."""
    *d_results, dg, d_beta, d_new_tail = grads
    (batch, time, _), key_width, taps, order = t.qkv.shape, t.conv_q.shape[0], _taps(t), t.order
    dg = _fill_starts(dg, t, 0)
    d, history = key_width // key_heads, taps.shape[0] - 1
    d_qkv, d_tail, d_taps = torch.empty_like(t.qkv), torch.empty_like(d_new_tail), torch.zeros_like(taps)
    for rows in even_slices(batch, (history + time) * taps.shape[1] * taps.itemsize, t.qkv):
        padded, packing, reach = _conv_inputs(t, rows, taps)
        dy = torch.cat([x[rows].flatten(2) for x in d_results], 2).to(taps.dtype)
        if packing is not None:
            dy = _pack(F.pad(dy, (0, 0, history, 0)), packing).masked_fill_((packing < history)[..., None], 0)
            dy = dy[:, history:]
        dz = _activation_backward(dy, convolve(padded, taps, reach), key_width, d)
        d_padded = torch.zeros_like(padded)
        _from_tail_layout(d_new_tail[rows], d_padded[:, time:], key_width)
        d_padded[:, time:] = _within_document(d_padded[:, time:], reach)
        convolve_backward(dz, padded, taps, d_padded, d_taps, reach)
        d_padded = d_padded if packing is None else _unpack(d_padded, packing)
        _to_tail_layout(d_padded[:, :history], d_tail[rows], key_width)
        d_qkv[rows].copy_(d_padded[:, history:])
    weights = zip(d_taps.t().split(_widths(t)), (t.conv_q, t.conv_k, t.conv_v), strict=True)
    d_convs = [part.to(weight.dtype).contiguous() for part, weight in weights]
    d_ba, *d_heads = _gates_backward(_zero_padding(dg, order), _zero_padding(d_beta, order), t, strength)
    return d_qkv, d_ba, *d_convs, *d_heads, d_tail


def _widths(t: DeltaInputTensors) -> list[int]:
    """The channels of q, k and v."""
    return [conv.shape[0] for conv in (t.conv_q, t.conv_k, t.conv_v)]


def _taps(t: DeltaInputTensors) -> Tensor:
    """The convolution's weights [kernel, channels of q | k | v] in the compute dtype."""
    convs = t.conv_q, t.conv_k, t.conv_v
    return torch.cat(convs).t().to(compute_dtype(t.conv_q)).contiguous()


def _conv_inputs(t: DeltaInputTensors, rows: slice, taps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """cat(tail, x) of all channels for some rows, packed with zeros in place of padding; these rows of `order`; and those of
    `reach` at the positions of x."""
    x, key_width = _batch_slice(t.qkv, rows), t.conv_q.shape[0]
    (count, time, _), history = x.shape, taps.shape[0] - 1
    padded = taps.new_empty((count, history + time, taps.shape[1]))
    first = padded.narrow(1, 0, history)
    padded.narrow(1, history, time).copy_(x)
    if t.tail is None:
        first.zero_()
    else:
        _from_tail_layout(_batch_slice(t.tail, rows), first, key_width)
    reach = None if t.reach is None else _batch_slice(t.reach, rows)[:, history:]
    if t.order is None:
        return padded, None, reach
    order = _batch_slice(t.order, rows)
    return _pack(padded, order).masked_fill_((order < 0)[..., None], 0), order, reach


def _within_document(last: Tensor, reach: Tensor | None) -> Tensor:
    """The newest tokens [rows, kernel - 1, channels], with zeros in place of those of earlier documents than the newest's."""
    if reach is None:
        return last
    distance = torch.arange(last.shape[1] - 1, -1, -1, device=last.device)
    return last.masked_fill((distance > reach[:, -1:])[..., None], 0)


def _fill_starts(gates: Tensor, t: DeltaInputTensors, value: float) -> Tensor:
    """Set gates [batch, time, heads] to `value` at the first token of every document."""
    if t.reach is None:
        return gates
    first = (t.reach == 0)[..., None]
    first = first if t.order is None else _unpack(first, t.order)
    return gates.masked_fill(first[:, t.reach.shape[1] - gates.shape[1] :], value)


def _activation_backward(dy: Tensor, z: Tensor, key_width: int, d: int) -> Tensor:
    """Backward of SiLU and L2 norm: from the gradient of their result to that of the convolution's. Overwrites `dy`."""
    y = F.silu(z[..., : 2 * key_width])
    heads, d_heads = y.unflatten(2, (-1, d)), _qk_heads(dy, key_width, d)
    inverse = inverse_norm(heads)
    normal = heads.mul_(inverse)
    along = (d_heads * normal).sum(-1, keepdim=True)
    d_heads.addcmul_(normal, along, value=-1).mul_(inverse)
    return torch.ops.aten.silu_backward(dy, z)


def _gates_backward(dg: Tensor, d_beta: Tensor, t: DeltaInputTensors, strength: float) -> tuple[Tensor, ...]:
    """Gradients of ba, a_log and dt_bias."""
    dtype, order = dg.dtype, t.order
    b, a = t.ba.to(dtype).chunk(2, 2)
    neg_a, dt = -t.a_log.to(dtype).exp(), _zero_padding(a + t.dt_bias.to(dtype), order)
    d_neg_a = (dg * F.softplus(dt)).sum((0, 1))
    d_dt = torch.ops.aten.softplus_backward(dg * neg_a, dt, 1.0, 20.0)
    sigmoid = torch.sigmoid(_zero_padding(b, order))
    db = d_beta * sigmoid * (1 - sigmoid) * strength
    d_bias = d_dt.sum((0, 1)).to(t.dt_bias.dtype)
    return torch.cat([db, d_dt], 2).to(t.ba.dtype), (d_neg_a * neg_a).to(t.a_log.dtype), d_bias


def _qk_heads(y: Tensor, key_width: int, d: int) -> Tensor:
    """View of the query and key channels as [rows, positions, 2 * key_heads, d]."""
    return y.narrow(2, 0, 2 * key_width).view(y.shape[0], y.shape[1], -1, d)


def inverse_norm(heads: Tensor) -> Tensor:
    """One over the L2 norm of the heads of queries and keys [..., d]: [..., 1]."""
    return torch.rsqrt_((heads * heads).sum(-1, keepdim=True).add_(EPS))


def _to_tail_layout(x: Tensor, out: Tensor, key_width: int) -> None:
    """Copy channels laid out q | k | v into a tail, which is laid out by key head."""
    for tail_part, part in _tail_views(out, x, key_width):
        tail_part.copy_(part)


def _from_tail_layout(tail: Tensor, out: Tensor, key_width: int) -> None:
    """The inverse of `_to_tail_layout`."""
    for tail_part, part in _tail_views(tail, out, key_width):
        part.copy_(tail_part)


def _tail_views(tail: Tensor, x: Tensor, key_width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views of equal shape for q, k and v: of a tail [rows, positions, key_heads, channels] and of x, q | k | v."""
    heads, widths = tail.shape[2], [key_width, key_width, x.shape[2] - 2 * key_width]
    tail_parts = tail.split_with_sizes([width // heads for width in widths], 3)
    for part, channels in zip(tail_parts, x.split_with_sizes(widths, 2), strict=True):
        yield part, channels.view(part.shape)


def _batch_slice(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor. All rows are the tensor itself: for a single token, a view takes as long as the computation."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _zero_padding(gates: Tensor, order: Tensor | None) -> Tensor:
    """Set gates [batch, time, heads] of padded tokens to 0."""
    if order is None:
        return gates
    padding = _unpack((order < 0)[..., None], order)
    return gates.masked_fill(padding[:, order.shape[1] - gates.shape[1] :], 0)


def _pack(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of x [batch, history + time, channels] in packed order."""
    return x.flatten(0, 1).index_select(0, _flat_index(order)).view(x.shape)


def _unpack(x: Tensor, order: Tensor) -> Tensor:
    """The inverse of `_pack`."""
    return torch.empty_like(x).flatten(0, 1).index_copy_(0, _flat_index(order), x.flatten(0, 1)).view(x.shape)


def _flat_index(order: Tensor) -> Tensor:
    """Packed order as an index into all sequences' tokens, since index_select of whole rows is much faster than gather on CPU."""
    first = torch.arange(0, order.numel(), order.shape[1], device=order.device)[:, None]
    return (torch.where(order < 0, -1 - order, order) + first).flatten()
