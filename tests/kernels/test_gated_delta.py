"""Values of the gated delta rule: `reference` against the recurrence in numpy, and `chunked` against `reference`."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from sleep_kernels import gated_delta_rule
from tests.kernels import rule_inputs
from tests.kernels.rule_inputs import run

# All results are of order one to a hundred, so this is ten digits.
TOLERANCE = 1e-10


make_inputs = partial(rule_inputs.make_inputs, batch=2, key_heads=2, d_k=8, d_v=8, dtype=torch.float64)


def assert_equal(inputs: dict[str, Tensor], **options: float) -> None:
    expected, actual = run(inputs, "reference", **options), run(inputs, "chunked", **options)
    for name, wanted in expected.items():
        difference = (actual[name] - wanted).abs().max().item()
        assert difference < TOLERANCE * max(1.0, wanted.abs().max().item()), f"{name}: {difference}"


def numpy_recurrence(inputs: dict[str, Tensor], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence, one head and one token at a time."""
    q, k, v, g, beta, initial = (inputs[n].numpy() for n in ("q", "k", "v", "g", "beta", "initial_state"))
    group = v.shape[2] // q.shape[2]
    o, final = np.zeros(v.shape), initial.copy()
    for b in range(v.shape[0]):
        for h in range(v.shape[2]):
            state = final[b, h]
            for t in range(v.shape[1]):
                key = k[b, t, h // group]
                state *= math.exp(g[b, t, h])
                update = beta[b, t, h] * (v[b, t, h] - key @ state)
                state += np.outer(key, update)
                o[b, t, h] = scale * (q[b, t, h // group] @ state)
    return o, final


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_recurrence(backend: str) -> None:
    inputs = make_inputs(time=37, group=2, d_k=5, d_v=7)
    o, final = numpy_recurrence(inputs, scale=0.3)
    actual_o, actual_final = gated_delta_rule(**inputs, scale=0.3, backend=backend)
    np.testing.assert_allclose(actual_o.numpy(), o, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(actual_final.numpy(), final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", [1, 2, 31, 32, 33, 63, 64, 65, 129])
def test_lengths(time: int) -> None:
    assert_equal(make_inputs(time=time))


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("d_k", "d_v"), [(6, 10), (10, 6), (1, 1)])
def test_heads_and_widths(group: int, d_k: int, d_v: int) -> None:
    assert_equal(make_inputs(time=40, group=group, d_k=d_k, d_v=d_v))


@pytest.mark.parametrize("time", [1, 40, 64])
def test_resets_are_exact(time: int) -> None:
    """Tokens with g = -inf, several in a chunk, next to each other, first and last: nothing before them matters."""
    inputs = make_inputs(time=time, group=2)
    for position in (0, 3, 4, 20, 31, 32, 33, 63):
        inputs["g"][position % 2, position : position + 1, position % 3] = -math.inf
    inputs["g"][0, -1] = -math.inf
    expected, actual = run(inputs, "reference"), run(inputs, "chunked")
    for name, wanted in expected.items():
        assert (actual[name] - wanted).abs().max() <= 1e-13 * wanted.abs().max().clamp(min=1.0), name
    clamped = run(inputs, "chunked", resets=False)
    for name, wanted in expected.items():
        assert (clamped[name] - wanted).abs().max() <= 1e-10 * wanted.abs().max().clamp(min=1.0), name


def test_identical_keys_without_decay() -> None:
    inputs = make_inputs(time=64)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    inputs["g"] = torch.zeros_like(inputs["g"])
    inputs["beta"] = torch.full_like(inputs["beta"], 0.999)
    assert_equal(inputs)


def test_identical_keys_in_float32() -> None:
    inputs = make_inputs(time=64)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    inputs["g"] = torch.zeros_like(inputs["g"])
    inputs["beta"] = torch.full_like(inputs["beta"], 0.999)
    narrow = {name: t.float() for name, t in inputs.items()}
    expected = run({name: t.double() for name, t in narrow.items()}, "reference")
    for name, actual in run(narrow, "chunked").items():
        assert (actual - expected[name]).abs().max() < 1e-5 * max(1.0, expected[name].abs().max()), name


def test_nearly_parallel_keys() -> None:
    inputs = make_inputs(time=64, d_k=16)
    common = inputs["k"][:, :1]
    across = inputs["k"] - (inputs["k"] * common).sum(-1, keepdim=True) * common
    across = torch.nn.functional.normalize(across, dim=-1)
    inputs["k"] = math.sqrt(0.99) * common + math.sqrt(0.01) * across  # cosine of any two is about .99
    assert_equal(inputs)


@pytest.mark.parametrize("g", [0.0, -1e-6, -50.0, -1e4])
def test_extreme_decay(g: float) -> None:
    inputs = make_inputs(time=70)
    inputs["g"] = torch.full_like(inputs["g"], g)
    assert_equal(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resets_among_ordinary_tokens(dtype: torch.dtype) -> None:
    inputs = make_inputs(time=70)
    inputs["g"][:, 5::16] = -1e4
    narrow = {name: t.to(dtype) for name, t in inputs.items()}
    expected = run({name: t.double() for name, t in narrow.items()}, "reference")
    # A cumulative sum over up to two resets per chunk loses float32 digits: 2 * 150 * 2^-24 is 2e-5.
    bound = 1e-4 if dtype == torch.float32 else TOLERANCE
    for name, actual in run(narrow, "chunked").items():
        assert (actual - expected[name]).abs().max() < bound * max(1.0, expected[name].abs().max()), name


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_constant_beta(beta: float) -> None:
    inputs = make_inputs(time=45)
    inputs["beta"] = torch.full_like(inputs["beta"], beta)
    assert_equal(inputs)


def test_beta_up_to_two() -> None:
    inputs = make_inputs(time=70)
    inputs["beta"] = 2 * inputs["beta"]
    assert_equal(inputs)


def test_zero_beta_keeps_the_state() -> None:
    inputs = make_inputs(time=33)
    inputs["beta"], inputs["g"] = torch.zeros_like(inputs["beta"]), torch.zeros_like(inputs["g"])
    _, final = gated_delta_rule(**inputs)
    assert torch.equal(final, inputs["initial_state"])


def test_batch_processed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(batch=5, time=70)
    whole = run(inputs, "chunked")
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 20_000})
    for name, t in run(inputs, "chunked").items():
        torch.testing.assert_close(t, whole[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 32, 50])
def test_two_windows_equal_one_window(cut: int) -> None:
    inputs = make_inputs(time=70)
    o, final = gated_delta_rule(**inputs)
    first = {n: t if n == "initial_state" else t[:, :cut] for n, t in inputs.items()}
    second = {n: t if n == "initial_state" else t[:, cut:] for n, t in inputs.items()}
    o1, middle = gated_delta_rule(**first)
    o2, end = gated_delta_rule(**{**second, "initial_state": middle})
    torch.testing.assert_close(torch.cat([o1, o2], 1), o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, final, rtol=1e-12, atol=1e-12)


def test_no_initial_state_equals_zero_state() -> None:
    inputs = make_inputs()
    zero = gated_delta_rule(**{**inputs, "initial_state": torch.zeros_like(inputs["initial_state"])})
    del inputs["initial_state"]
    for time in (1, 70):
        part = {name: t[:, :time] for name, t in inputs.items()}
        torch.testing.assert_close(gated_delta_rule(**part)[0], zero[0][:, :time])


def test_strided_and_expanded_inputs() -> None:
    inputs = make_inputs(time=40)
    packed = torch.cat([inputs["q"], inputs["k"], inputs["v"]], dim=-1)
    views = dict(zip("qkv", packed.split(8, dim=-1), strict=True))
    leaves = {**inputs, **views, "beta": torch.tensor(0.5, dtype=torch.float64).expand(2, 40, 2)}
    o, final = gated_delta_rule(**leaves)
    expected, _ = gated_delta_rule(**{name: t.contiguous() for name, t in leaves.items()})
    assert torch.equal(o, expected) and final.is_contiguous()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradients_by_finite_differences(backend: str) -> None:
    inputs = make_inputs(batch=1, time=5, key_heads=1, group=2, d_k=3, d_v=2)
    leaves = [t.requires_grad_() for t in inputs.values()]
    assert torch.autograd.gradcheck(partial(gated_delta_rule, backend=backend), leaves)


def test_gradient_of_one_output() -> None:
    for index in (0, 1):
        grads = []
        for backend in ("reference", "chunked"):
            leaves = {n: t.requires_grad_() for n, t in make_inputs(time=40).items()}
            result = gated_delta_rule(**leaves, backend=backend)[index]
            grads.append(torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True))
        for wanted, actual in zip(*grads, strict=True):
            expected = torch.zeros_like(actual) if wanted is None else wanted
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
