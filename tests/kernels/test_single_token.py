"""The operators of a single token against those of longer windows, and against the token-by-token reference."""

import pytest
import torch

from sleep_kernels import (
    convolve_token,
    delta_rule_token,
    gated_delta_rule,
    gated_norm_token,
    gated_rms_norm,
)
from tests.kernels.delta_inputs_reference import separate_inputs

BATCH, D, KERNEL = 3, 4, 4


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("value_heads", [2, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_equals_the_operators_of_longer_windows(strength, value_heads, dtype, tolerance):
    heads, r = 2, value_heads // 2
    keys, values = heads * D, value_heads * D
    q, k, v, a, b, gate = draw(
        (BATCH, 1, keys), (BATCH, 1, keys), (BATCH, 1, values), (BATCH, 1, value_heads), (BATCH, 1, value_heads),
        (BATCH, 1, values), dtype=dtype,
    )  # fmt: skip
    convs = tuple(draw((keys, KERNEL), (keys, KERNEL), (values, KERNEL)))
    a_log, bias, norm = draw((value_heads,), (value_heads,), (D,))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    convs, a_log, bias, norm = tuple(c.to(wide) for c in convs), a_log.to(wide), bias.to(wide), norm.to(wide)
    [tail] = draw((BATCH, KERNEL - 1, heads, (2 + r) * D), dtype=dtype)
    [state] = draw((BATCH, value_heads, D, D), dtype=wide)
    before = state.clone()

    *inputs, expected_tail = separate_inputs(
        q, k, v, a, b, *convs, a_log, bias, tail, key_heads=heads, strength=strength
    )
    o, expected_state = gated_delta_rule(*inputs, state, backend="reference")
    expected = gated_rms_norm(o, gate.view(o.shape), norm, 1e-6).view(gate.shape)

    query, key, value, new_tail = convolve_token(q, k, v, convs, tail)
    o, new_state = delta_rule_token(query, key, value, (a, b, a_log, bias), state, strength)
    actual = gated_norm_token(o, gate, norm, 1e-6)

    assert torch.equal(state, before) and torch.equal(new_tail, expected_tail)
    assert (new_state.dtype, actual.dtype) == (expected_state.dtype, expected.dtype)
    torch.testing.assert_close(new_state, expected_state, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
