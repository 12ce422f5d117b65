"""The mixers written as matrix products that `FlopCounterMode` knows, for counting: each product that the method needs, and no other.

torch's counter has formulas for matrix products only, and does not look into the operators of `sleep_kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sleeptrain.model import attention, deltanet, stack


def install(monkeypatch) -> None:
    """Let the model's mixers call the functions below. They take neither padding nor several documents in a row."""
    monkeypatch.setattr(deltanet.DeltaNet, "_convolved", convolved)
    # A joint product also computes gradients that nobody reads: those of queries where only the fast weights of a pass are read.
    monkeypatch.setattr(stack, "joint_weights", lambda groups: [None] * len(groups))
    monkeypatch.setattr(deltanet, "dynamic_conv", dynamic_conv)
    monkeypatch.setattr(deltanet, "gated_delta_rule", gated_delta_rule)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend)


def convolved(mixer, x, tail, mask, *_):
    """The projections of Gated DeltaNet through `sleep_kernels.delta_inputs`, whose short convolution is one product for each channel."""
    assert mask.read is None and mask.starts is None
    q, k, v, a, b = (layer(x) for layer in (mixer.q, mixer.k, mixer.v, mixer.a, mixer.b))
    key_heads = mixer.config.key_heads
    time = q.shape[1]
    old = tail.split_with_sizes([x.shape[2] // key_heads for x in (q, k, v)], 3)
    padded = [torch.cat([past.flatten(2), x], 1) for past, x in zip(old, (q, k, v), strict=True)]
    history = padded[0].shape[1] - time
    new_tail = torch.cat([x[:, time:].unflatten(2, (key_heads, -1)) for x in padded], 3)
    q, k, v = (
        _convolve(x, taps, time).unflatten(2, (-1, q.shape[2] // key_heads))
        for x, taps in zip(padded, (mixer.conv_q, mixer.conv_k, mixer.conv_v), strict=True)
    )
    assert new_tail.shape[1] == history
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    g = -mixer.A_log.exp() * F.softplus(a + mixer.dt_bias)
    return q, k, v, g, mixer._strength * torch.sigmoid(b), new_tail


def _convolve(padded: Tensor, taps: Tensor, time: int) -> Tensor:
    """SiLU of the causal convolution [batch, time, channels] of padded [batch, kernel - 1 + time, channels]."""
    read = padded.unfold(1, taps.shape[1], 1).permute(2, 0, 1, 3).flatten(1, 2)  # [channels, batch * time, kernel]
    y = torch.bmm(read, taps[:, :, None]).view(-1, padded.shape[0], time)
    return F.silu(y.permute(1, 2, 0))


def dynamic_conv(x, taps, static, tail, valid, starts):
    """`sleep_kernels.dynamic_conv`: one product for each channel of each token."""
    assert valid is None and starts is None
    padded = torch.cat([tail, x], 1)
    read = padded.unfold(1, static.shape[1], 1)  # [batch, time, channels, kernel]
    y = torch.bmm(read.flatten(0, 2)[:, None], (taps + static).flatten(0, 2)[..., None]).view(x.shape)
    return F.silu(y), padded[:, x.shape[1] :]


def gated_delta_rule(q, k, v, g, beta, initial_state, *, resets, backend):
    """`sleep_kernels.gated_delta_rule`, token by token: a product to read what a key holds, one to write, one to read for the query."""
    assert not resets
    batch, time, heads, d = v.shape
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (q, k))
    # The state needs a gradient even where it is the zero of a first window: kernels have one formula for all tokens.
    state, outputs = (initial_state + torch.zeros_like(initial_state, requires_grad=True)).flatten(0, 1), []
    for t in range(time):
        query, key, value = (x[:, t].flatten(0, 1)[:, None] for x in (q, k, v))
        state = state * g[:, t].reshape(-1, 1, 1).exp()
        update = beta[:, t].reshape(-1, 1, 1) * (value - torch.bmm(key, state))
        state = state + torch.bmm(key.mT, update)
        outputs.append(torch.bmm(query, state) * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1).view(batch, heads, time, d).transpose(1, 2), state.view(initial_state.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool) -> Tensor:
    """Scaled dot-product attention, query by query, over the keys that the query may see."""
    batch, heads, time, d = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], 1).flatten(0, 1) for x in (k, v))
    causal = torch.ones(time, k.shape[1], dtype=torch.bool).tril()
    allowed = causal if attn_mask is None else attn_mask[0, 0]
    assert is_causal == (attn_mask is None) and (attn_mask is None or (attn_mask == allowed).all())
    outputs = []
    for t in range(time):
        keys = allowed[t].nonzero()[:, 0]
        weights = torch.softmax(torch.bmm(q[:, :, t].reshape(-1, 1, d), k[:, keys].mT) * d**-0.5, -1)
        outputs.append(torch.bmm(weights, v[:, keys]))
    return torch.stack(outputs, 1).view(batch, heads, time, d)
