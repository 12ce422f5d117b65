"""The gated delta rule chunk by chunk in plain torch, with a backward that keeps nothing but the inputs.

Inside a chunk of C tokens let c_i be the running sum of g, kappa_j = beta_j k_j, and G_ij = exp(c_i - c_j) for i >= j,
else 0. With S the state before the chunk, e_i = v_i - k_i^T (state before token i) solves a unit triangular system:

    e   = A (v - exp(c) k S)          A = (1 + strict_tril((k kappa^T) * G))^-1
    o   = exp(c) q S + ((q kappa^T) * G) e
    S'  = exp(c_C) S + (exp(c_C - c) kappa)^T e

beta appears only in kappa, so nothing is divided by it, and A is computed by triangular solution, which stays
accurate for repeated keys where a Neumann product loses all digits. With x = [q; k] (readers), z = [do; -dr]
(their adjoints, dr the adjoint of the bracket) and dS' the adjoint of S':

    dr  = A^T (P^T do + exp(c_C - c) kappa dS')        P = (q kappa^T) * G;     dv = dr
    dS  = exp(c_C) dS' + (exp(c) x)^T z
    D   = (z e^T) * G, its lower half strictly below the diagonal
    dx  = exp(c) z S^T + D kappa
    dkappa = exp(c_C - c) e dS'^T + D^T x
    dk  = dx_k + beta dkappa          dbeta = <k, dkappa>
    dc  = <q, dx_q> + <k, dx_k> - beta dbeta,  and at the last token + <S', dS'>

The residual form follows the idea of QwenLM/FlashQLA (MIT); chunking follows Yang et al., arXiv 2412.06464, and
fla-org/flash-linear-attention (MIT). The code is our own.

Work is cut along the batch and along time into spans whose tensors fit into a core's cache (see common.py).
"""

import torch
from torch import Tensor

from sleep_kernels.common import computing_dtype
from sleep_kernels.spans import Inputs, Span, by_chunk, gather, plan, prepare, rows_of


def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs and final state; arguments as in `sleep_kernels.gated_delta_rule`, already checked."""
    if q.shape[1] == 1:
        return _step(q, k, v, g, beta, initial_state, scale)
    batch, _, value_heads, d_v = v.shape
    final = q.new_empty((batch, value_heads, q.shape[3], d_v), dtype=computing_dtype(q))
    final.zero_() if initial_state is None else final.copy_(initial_state)
    o = v.new_empty(v.shape)
    rows, spans = plan(q, v)
    inputs = gather(q, k, v, g, beta, scale)
    for part in rows:
        _forward_rows(rows_of(inputs, part), spans, final[part], o[part])
    return o, final


def backward(
    grad_o: Tensor | None,
    grad_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the initial state, from those of the outputs (None means zero)."""
    dtype = computing_dtype(q)
    if grad_o is None:
        grad_o = v.new_zeros(v.shape)
    d_state = q.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=dtype)
    d_state.zero_() if grad_state is None else d_state.copy_(grad_state)
    grads = [t.new_empty(t.shape) for t in (q, k, v, g, beta)]
    rows, spans = plan(q, v)
    inputs = gather(q, k, v, g, beta, scale)
    for part in rows:
        state = None if initial_state is None else initial_state[part]
        _backward_rows(rows_of(inputs, part), spans, state, grad_o[part], d_state[part], [t[part] for t in grads])
    return (*grads, d_state)  # type: ignore[return-value]


def _step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """One token: decoding."""
    dtype, (batch, _, value_heads, d_v), d_k = computing_dtype(q), v.shape, q.shape[3]
    group, lanes = value_heads // q.shape[2], batch * value_heads
    if group > 1:
        q, k = q.repeat_interleave(group, dim=2), k.repeat_interleave(group, dim=2)
    query, key, value = (t.reshape(lanes, 1, t.shape[3]).to(dtype) for t in (q, k, v))
    if initial_state is None:
        state = value.new_zeros((lanes, d_k, d_v))
    else:
        state = initial_state.reshape(lanes, d_k, d_v) * g.to(dtype).reshape(lanes, 1, 1).exp()
    update = torch.baddbmm(value, key, state, alpha=-1).mul_(beta.reshape(lanes, 1, 1))
    state = state.contiguous().baddbmm_(key.mT, update)
    o = torch.bmm(query, state).mul_(scale)
    return o.view(v.shape).to(v.dtype), state.view(batch, value_heads, d_k, d_v)


def _forward_rows(inputs: Inputs, spans: list[tuple[int, int, int]], state: Tensor, o: Tensor) -> None:
    """Fill o and bring `state`, which holds the initial state, to the end."""
    batch, heads, d_k, d_v = state.shape
    lanes = batch * heads
    flat = state.view(lanes, d_k, d_v)
    for start, stop, chunk in spans:
        span = prepare(inputs, start, stop, chunk)
        v, out = by_chunk(inputs.v, start, stop, chunk), by_chunk(o, start, stop, chunk)
        for i in range(span.x.shape[0]):
            read = torch.bmm(span.x_into[i], flat).view(batch, heads, 2, chunk, d_v)
            residual = flat.new_empty((lanes, chunk, d_v))
            torch.sub(v[i], read[:, :, 1], out=residual.view(batch, heads, chunk, d_v))
            e = torch.bmm(span.inverse[i], residual)
            y = torch.baddbmm(read.view(lanes, 2, chunk, d_v)[:, 0], span.scores[i, :, 0], e)
            torch.mul(y.view(batch, heads, chunk, d_v), inputs.scale, out=out[i])
            flat.mul_(span.into[i, :, -1:]).baddbmm_(span.kappa_out[i].mT, e)


def _backward_rows(
    inputs: Inputs,
    spans: list[tuple[int, int, int]],
    initial: Tensor | None,
    grad_o: Tensor,
    d_state: Tensor,
    grads: list[Tensor],
) -> None:
    """Fill grads and bring `d_state`, which holds the adjoint of the final state, to the start."""
    batch, heads, d_k, d_v = d_state.shape
    lanes = batch * heads
    prepared, kept = [], []
    state = d_state.new_zeros((lanes, d_k, d_v)) if initial is None else initial.reshape(lanes, d_k, d_v)
    for start, stop, chunk in spans:
        span = prepare(inputs, start, stop, chunk)
        states, e = _replay(span, by_chunk(inputs.v, start, stop, chunk), state)
        state = states[-1]
        prepared.append(span)
        kept.append((states, e))
    flat = d_state.view(lanes, d_k, d_v)
    while prepared:  # popped, so that a span's memory is free as soon as it is done
        span, (states, e) = prepared.pop(), kept.pop()
        z, d_states = _reverse(span, by_chunk(grad_o, span.start, span.stop, e.shape[2]), inputs.scale, flat)
        _gradients(span, states, e, z, d_states, grads)


def _replay(span: Span, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States at the chunks' edges [n + 1, N, d_k, d_v] and residuals e [n, N, C, d_v]."""
    n, batch, heads, chunk, d_v = v.shape
    lanes = batch * heads
    states = state.new_empty((n + 1, *state.shape))
    states[0].copy_(state)
    e = state.new_empty((n, lanes, chunk, d_v))
    for i in range(n):
        residual = torch.bmm(span.x_into[i, :, chunk:], states[i])
        lane_view = residual.view(batch, heads, chunk, d_v)
        torch.sub(v[i], lane_view, out=lane_view)
        torch.bmm(span.inverse[i], residual, out=e[i])
        torch.mul(states[i], span.into[i, :, -1:], out=states[i + 1])
        states[i + 1].baddbmm_(span.kappa_out[i].mT, e[i])
    return states, e


def _reverse(span: Span, grad_o: Tensor, scale: float, d_state: Tensor) -> tuple[Tensor, Tensor]:
    """z = [do; -dr] [n, N, 2, C, d_v] and the adjoints of the states after each chunk; d_state moves to the start."""
    n, batch, heads, chunk, d_v = grad_o.shape
    lanes = batch * heads
    z = d_state.new_empty((n, lanes, 2, chunk, d_v))
    z[:, :, 0].view(n, batch, heads, chunk, d_v).copy_(grad_o).mul_(scale)
    d_e = torch.bmm(span.scores.view(n * lanes, 2, chunk, chunk)[:, 0].mT, z.view(n * lanes, 2, chunk, d_v)[:, 0]).view(
        n, lanes, chunk, d_v
    )
    d_states = d_state.new_empty((n, *d_state.shape))
    for i in range(n - 1, -1, -1):
        d_states[i].copy_(d_state)
        minus_d_e = torch.baddbmm(d_e[i], span.kappa_out[i], d_state, beta=-1, alpha=-1)
        # Not out=z[...]: bmm into a strided result takes a slow path on CPU.
        z[i, :, 1].copy_(torch.bmm(span.inverse[i].mT, minus_d_e))
        d_state.mul_(span.into[i, :, -1:]).baddbmm_(span.x_into[i].mT, z[i].view(lanes, 2 * chunk, d_v))
    return z, d_states


def _gradients(span: Span, states: Tensor, e: Tensor, z: Tensor, d_states: Tensor, grads: list[Tensor]) -> None:
    """Write the span's part of the gradients of q, k, v, g and beta."""
    n, lanes, _, chunk, d_k = span.x.shape
    d_v, flat = e.shape[3], n * lanes
    dq, dk, dv, dg, dbeta = (by_chunk(t, span.start, span.stop, chunk) for t in grads)
    readers, writers = span.x.view(flat, 2 * chunk, d_k), span.kappa.view(flat, chunk, d_k)
    z_flat, e_flat = z.view(flat, 2 * chunk, d_v), e.view(flat, chunk, d_v)
    d_scores = torch.bmm(z_flat, e_flat.mT).view(n, lanes, 2, chunk, chunk).mul_(span.decay)
    d_scores[:, :, 1].diagonal(dim1=-2, dim2=-1).zero_()
    d_scores = d_scores.view(flat, 2 * chunk, chunk)
    dx = torch.bmm(z_flat, states[:-1].view(flat, d_k, d_v).mT)
    dx.view(n, lanes, 2, chunk, d_k).mul_(span.into.unsqueeze(2))
    dx = dx.baddbmm_(d_scores, writers).view(n, lanes, 2, chunk, d_k)
    d_kappa = torch.bmm(e_flat, d_states.view(flat, d_k, d_v).mT).mul_(span.out.view(flat, chunk, 1))
    d_kappa = d_kappa.baddbmm_(d_scores.mT, readers).view(n, lanes, chunk, d_k)
    d_strength = (span.x[:, :, 1] * d_kappa).sum(-1)
    # Two sums: over both dimensions at once torch is three times slower.
    d_running = (span.x * dx).sum(-1).sum(2).sub_(span.beta.squeeze(-1) * d_strength)
    d_running[..., -1] += (states[1:] * d_states).sum((-1, -2))
    # The adjoint of a running sum is the sum from here to the chunk's end.
    d_gate = d_running.view(flat, chunk) @ d_running.new_ones((chunk, chunk)).tril_()
    d_key = torch.addcmul(dx[:, :, 1], span.beta, d_kappa)
    _add_groups(dx[:, :, 0], dq)
    _add_groups(d_key, dk)
    dv.copy_(z[:, :, 1].view(dv.shape)).neg_()
    dg.copy_(d_gate.view(dg.shape))
    dbeta.copy_(d_strength.view(dbeta.shape))


def _add_groups(per_value_head: Tensor, result: Tensor) -> None:
    """Sum the gradient [n, N, C, d_k] over the value heads that share a key head."""
    n, batch, key_heads, chunk, d_k = result.shape
    grouped = per_value_head.view(n, batch, key_heads, -1, chunk, d_k)
    result.copy_(grouped[:, :, :, 0] if grouped.shape[3] == 1 else grouped.sum(3))
