"""Chunked gated delta rule in plain torch, forward and backward; backward saves only the inputs.

Inside a chunk of C tokens let c_i be the cumulative sum of g, kappa_j = beta_j k_j, and G_ij = exp(c_i - c_j) for i >= j,
else 0. With S the state before the chunk, the residuals e_i = v_i - k_i^T (state before token i) solve a unit lower
triangular system (the WY representation of the chunk, applied to the values):

    e   = A (v - exp(c) k S)          A = (1 + strict_tril((k kappa^T) * G))^-1
    o   = exp(c) q S + ((q kappa^T) * G) e
    S'  = exp(c_C) S + (exp(c_C - c) kappa)^T e

beta occurs only in kappa, so the algorithm never divides by it. A is computed by a triangular solve, which stays accurate
for repeated keys; a Neumann product loses all digits there. Backward, with x = [q; k], r = v - exp(c) k S,
z = [do; -dr] and dS' the gradient of S':

    dr  = A^T (P^T do + exp(c_C - c) kappa dS')        P = (q kappa^T) * G;     dv = dr
    dS  = exp(c_C) dS' + (exp(c) x)^T z
    D   = (z e^T) * G, its lower half strictly below the diagonal
    dx  = exp(c) z S^T + D kappa
    dkappa = exp(c_C - c) e dS'^T + D^T x
    dk  = dx_k + beta dkappa          dbeta = <k, dkappa>
    dc  = <q, dx_q> + <k, dx_k> - beta dbeta,  and at the last token + <S', dS'>

In the code qk is x, k_beta is kappa, and bh counts the batch * value_heads independent recurrences.

The residual form follows an idea of QwenLM/FlashQLA (MIT). Chunking follows Yang et al., arXiv 2412.06464, and
fla-org/flash-linear-attention (MIT). The code is our own.

The batch is processed in slices and time in segments of several chunks, sized to fit into a core's cache (see common.py).
"""

import torch
from torch import Tensor

from sleep_kernels.common import RuleArguments, compute_dtype
from sleep_kernels.segments import (
    ChunkInputs,
    SequenceSegment,
    batch_slice,
    chunk_view,
    convert_gates,
    intra_chunk,
    partition,
)


def forward(t: RuleArguments) -> tuple[Tensor, Tensor]:
    """Output and final state."""
    q, v = t.q, t.v
    if q.shape[1] == 1:
        return _decode(t)
    batch, _, value_heads, d_v = v.shape
    final = q.new_empty((batch, value_heads, q.shape[3], d_v), dtype=compute_dtype(q))
    final.zero_() if t.initial_state is None else final.copy_(t.initial_state)
    o = v.new_empty(v.shape)
    batch_slices, segments = partition(q, v)
    inputs = convert_gates(t)
    for part in batch_slices:
        _forward_batch_slice(batch_slice(inputs, part), segments, final[part], o[part])
    return o, final


def backward(
    grad_o: Tensor | None, grad_state: Tensor | None, t: RuleArguments
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state. None for an output's gradient means zero."""
    q, v, initial = t.q, t.v, t.initial_state
    if grad_o is None:
        grad_o = v.new_zeros(v.shape)
    d_state = q.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=compute_dtype(q))
    d_state.zero_() if grad_state is None else d_state.copy_(grad_state)
    grads = [x.new_empty(x.shape) for x in t[:5]]
    batch_slices, segments = partition(q, v)
    inputs = convert_gates(t)
    for part in batch_slices:
        state = None if initial is None else initial[part]
        inputs_part, grads_part = batch_slice(inputs, part), [x[part] for x in grads]
        _backward_batch_slice(inputs_part, segments, state, grad_o[part], d_state[part], grads_part)
    return (*grads, d_state)  # type: ignore[return-value]


def _decode(t: RuleArguments) -> tuple[Tensor, Tensor]:
    """Recurrent step for a single token, as in decoding."""
    q, k, v, g, beta, initial_state, scale, _ = t
    dtype, (batch, _, value_heads, d_v), d_k = compute_dtype(q), v.shape, q.shape[3]
    group, bh = value_heads // q.shape[2], batch * value_heads
    if group > 1:
        q, k = q.repeat_interleave(group, dim=2), k.repeat_interleave(group, dim=2)
    query, key, value = (t.reshape(bh, 1, t.shape[3]).to(dtype) for t in (q, k, v))
    if initial_state is None:
        state = value.new_zeros((bh, d_k, d_v))
    else:
        state = initial_state.reshape(bh, d_k, d_v) * g.to(dtype).reshape(bh, 1, 1).exp()
    update = torch.baddbmm(value, key, state, alpha=-1).mul_(beta.reshape(bh, 1, 1))
    state = state.contiguous().baddbmm_(key.mT, update)
    o = torch.bmm(query, state).mul_(scale)
    return o.view(v.shape).to(v.dtype), state.view(batch, value_heads, d_k, d_v)


def _forward_batch_slice(inputs: ChunkInputs, segments: list[tuple[int, int, int]], state: Tensor, o: Tensor) -> None:
    """Write o, and update `state` in place from the initial to the final state."""
    batch, heads, d_k, d_v = state.shape
    bh = batch * heads
    flat = state.view(bh, d_k, d_v)
    for start, stop, chunk in segments:
        segment = intra_chunk(inputs, start, stop, chunk)
        v, out = chunk_view(inputs.v, start, stop, chunk), chunk_view(o, start, stop, chunk)
        for i in range(segment.qk.shape[0]):
            read = torch.bmm(segment.qk_in[i], flat).view(batch, heads, 2, chunk, d_v)
            residual = flat.new_empty((bh, chunk, d_v))
            torch.sub(v[i], read[:, :, 1], out=residual.view(batch, heads, chunk, d_v))
            e = torch.bmm(segment.inverse[i], residual)
            y = torch.baddbmm(read.view(bh, 2, chunk, d_v)[:, 0], segment.scores[i, :, 0], e)
            torch.mul(y.view(batch, heads, chunk, d_v), inputs.scale, out=out[i])
            flat.mul_(segment.decay_in[i, :, -1:]).baddbmm_(segment.k_beta_out[i].mT, e)


def _backward_batch_slice(
    inputs: ChunkInputs,
    segments: list[tuple[int, int, int]],
    initial: Tensor | None,
    grad_o: Tensor,
    d_state: Tensor,
    grads: list[Tensor],
) -> None:
    """Write grads, and update `d_state` in place from the final state's gradient to the initial state's."""
    batch, heads, d_k, d_v = d_state.shape
    bh = batch * heads
    prepared, kept = [], []
    state = d_state.new_zeros((bh, d_k, d_v)) if initial is None else initial.reshape(bh, d_k, d_v)
    for start, stop, chunk in segments:
        segment = intra_chunk(inputs, start, stop, chunk)
        states, e = _recompute_states(segment, chunk_view(inputs.v, start, stop, chunk), state)
        state = states[-1]
        prepared.append(segment)
        kept.append((states, e))
    flat = d_state.view(bh, d_k, d_v)
    while prepared:  # popped, so that a segment's memory is freed as soon as its gradients are written
        segment, (states, e) = prepared.pop(), kept.pop()
        grad_chunks = chunk_view(grad_o, segment.start, segment.stop, e.shape[2])
        z, d_states = _backward_states(segment, grad_chunks, inputs.scale, flat)
        _gradients(segment, states, e, z, d_states, grads)


def _recompute_states(segment: SequenceSegment, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States at chunk boundaries [n + 1, bh, d_k, d_v] and residuals e [n, bh, C, d_v]."""
    n, batch, heads, chunk, d_v = v.shape
    bh = batch * heads
    states = state.new_empty((n + 1, *state.shape))
    states[0].copy_(state)
    e = state.new_empty((n, bh, chunk, d_v))
    for i in range(n):
        residual = torch.bmm(segment.qk_in[i, :, chunk:], states[i])
        by_head = residual.view(batch, heads, chunk, d_v)
        torch.sub(v[i], by_head, out=by_head)
        torch.bmm(segment.inverse[i], residual, out=e[i])
        torch.mul(states[i], segment.decay_in[i, :, -1:], out=states[i + 1])
        states[i + 1].baddbmm_(segment.k_beta_out[i].mT, e[i])
    return states, e


def _backward_states(segment: SequenceSegment, grad_o: Tensor, scale: float, d_state: Tensor) -> tuple[Tensor, Tensor]:
    """z = [do; -dr] [n, bh, 2, C, d_v] and the gradients of the states after each chunk [n, bh, d_k, d_v].

    Updates `d_state` in place from the gradient of the segment's last state to that of its first.
    """
    n, batch, heads, chunk, d_v = grad_o.shape
    bh = batch * heads
    z = d_state.new_empty((n, bh, 2, chunk, d_v))
    z[:, :, 0].view(n, batch, heads, chunk, d_v).copy_(grad_o).mul_(scale)
    q_scores, d_o = segment.scores.view(n * bh, 2, chunk, chunk)[:, 0], z.view(n * bh, 2, chunk, d_v)[:, 0]
    d_e = torch.bmm(q_scores.mT, d_o).view(n, bh, chunk, d_v)
    d_states = d_state.new_empty((n, *d_state.shape))
    for i in range(n - 1, -1, -1):
        d_states[i].copy_(d_state)
        minus_d_e = torch.baddbmm(d_e[i], segment.k_beta_out[i], d_state, beta=-1, alpha=-1)
        # Not out=z[...]: bmm with a strided output takes a slow path on CPU.
        z[i, :, 1].copy_(torch.bmm(segment.inverse[i].mT, minus_d_e))
        d_state.mul_(segment.decay_in[i, :, -1:]).baddbmm_(segment.qk_in[i].mT, z[i].view(bh, 2 * chunk, d_v))
    return z, d_states


def _gradients(
    segment: SequenceSegment, states: Tensor, e: Tensor, z: Tensor, d_states: Tensor, grads: list[Tensor]
) -> None:
    """Write the gradients of q, k, v, g and beta for the segment's tokens."""
    n, bh, _, chunk, d_k = segment.qk.shape
    d_v, flat = e.shape[3], n * bh
    dq, dk, dv, dg, dbeta = (chunk_view(t, segment.start, segment.stop, chunk) for t in grads)
    qk, k_beta = segment.qk.view(flat, 2 * chunk, d_k), segment.k_beta.view(flat, chunk, d_k)
    z_flat, e_flat = z.view(flat, 2 * chunk, d_v), e.view(flat, chunk, d_v)
    d_scores = torch.bmm(z_flat, e_flat.mT).view(n, bh, 2, chunk, chunk).mul_(segment.decay)
    d_scores[:, :, 1].diagonal(dim1=-2, dim2=-1).zero_()
    d_scores = d_scores.view(flat, 2 * chunk, chunk)
    d_qk = torch.bmm(z_flat, states[:-1].view(flat, d_k, d_v).mT)
    d_qk.view(n, bh, 2, chunk, d_k).mul_(segment.decay_in.unsqueeze(2))
    d_qk = d_qk.baddbmm_(d_scores, k_beta).view(n, bh, 2, chunk, d_k)
    d_k_beta = torch.bmm(e_flat, d_states.view(flat, d_k, d_v).mT).mul_(segment.decay_out.view(flat, chunk, 1))
    d_k_beta = d_k_beta.baddbmm_(d_scores.mT, qk).view(n, bh, chunk, d_k)
    d_beta = (segment.qk[:, :, 1] * d_k_beta).sum(-1)
    # Two sums, because torch's sum over both dimensions at once is three times slower.
    d_cumsum = (segment.qk * d_qk).sum(-1).sum(2).sub_(segment.beta.squeeze(-1) * d_beta)
    d_cumsum[..., -1] += (states[1:] * d_states).sum((-1, -2))
    # The gradient of a cumulative sum is the reverse cumulative sum within the chunk.
    d_gate = d_cumsum.view(flat, chunk) @ d_cumsum.new_ones((chunk, chunk)).tril_()
    if segment.resets is not None:
        d_gate.masked_fill_(segment.resets.reshape(flat, chunk), 0)
    d_key = torch.addcmul(d_qk[:, :, 1], segment.beta, d_k_beta)
    _sum_over_value_heads(d_qk[:, :, 0], dq)
    _sum_over_value_heads(d_key, dk)
    dv.copy_(z[:, :, 1].view(dv.shape)).neg_()
    dg.copy_(d_gate.view(dg.shape))
    dbeta.copy_(d_beta.view(dbeta.shape))


def _sum_over_value_heads(per_value_head: Tensor, result: Tensor) -> None:
    """Sum the gradient [n, bh, C, d_k] over the value heads that share a key head."""
    n, batch, key_heads, chunk, d_k = result.shape
    grouped = per_value_head.view(n, batch, key_heads, -1, chunk, d_k)
    result.copy_(grouped[:, :, :, 0] if grouped.shape[3] == 1 else grouped.sum(3))
