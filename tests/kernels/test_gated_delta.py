"""Gated delta rule: the recurrence in numpy, `reference` against it, and `chunked` against `reference`."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from sleep_kernels import choice, gated_delta_rule

NAMES = ("o", "final_state", "q", "k", "v", "g", "beta", "initial_state")
# Everything is of order one to a hundred, so this is ten digits.
TOLERANCE = 1e-10


def make_inputs(
    batch: int = 2, time: int = 70, key_heads: int = 2, group: int = 1, d_k: int = 8, d_v: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads = key_heads * group
    return {
        "q": torch.nn.functional.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "k": torch.nn.functional.normalize(normal(batch, time, key_heads, d_k), dim=-1),
        "v": normal(batch, time, heads, d_v),
        "g": -torch.rand(batch, time, heads, generator=generator, dtype=torch.float64),
        "beta": torch.rand(batch, time, heads, generator=generator, dtype=torch.float64),
        "initial_state": normal(batch, heads, d_k, d_v),
    }


def run(inputs: dict[str, Tensor], backend: str, **options: float) -> dict[str, Tensor]:
    """Outputs and all gradients, the final state's gradient being non-zero."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    o, final = gated_delta_rule(**leaves, backend=backend, **options)
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (o, final)]
    grads = torch.autograd.grad([o, final], list(leaves.values()), weights)
    return {"o": o.detach(), "final_state": final.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_equal(inputs: dict[str, Tensor], **options: float) -> None:
    expected, actual = run(inputs, "reference", **options), run(inputs, "chunked", **options)
    for name, wanted in expected.items():
        difference = (actual[name] - wanted).abs().max().item()
        assert difference < TOLERANCE * max(1.0, wanted.abs().max().item()), f"{name}: {difference}"


def numpy_recurrence(inputs: dict[str, Tensor], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The equations, one head and one token at a time."""
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
    # A running sum of up to two resets a chunk costs float32 digits: 2 * 150 * 2^-24 is 2e-5.
    bound = 1e-4 if dtype == torch.float32 else TOLERANCE
    for name, actual in run(narrow, "chunked").items():
        assert (actual - expected[name]).abs().max() < bound * max(1.0, expected[name].abs().max()), name


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_constant_strength(beta: float) -> None:
    inputs = make_inputs(time=45)
    inputs["beta"] = torch.full_like(inputs["beta"], beta)
    assert_equal(inputs)


def test_strength_up_to_two() -> None:
    inputs = make_inputs(time=70)
    inputs["beta"] = 2 * inputs["beta"]
    assert_equal(inputs)


def test_nothing_written_keeps_the_state() -> None:
    inputs = make_inputs(time=33)
    inputs["beta"], inputs["g"] = torch.zeros_like(inputs["beta"]), torch.zeros_like(inputs["g"])
    _, final = gated_delta_rule(**inputs)
    assert torch.equal(final, inputs["initial_state"])


def test_batch_cut_into_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(batch=5, time=70)
    whole = run(inputs, "chunked")
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 20_000})
    for name, t in run(inputs, "chunked").items():
        torch.testing.assert_close(t, whole[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 32, 50])
def test_two_windows_equal_one(cut: int) -> None:
    inputs = make_inputs(time=70)
    o, final = gated_delta_rule(**inputs)
    first = {n: t if n == "initial_state" else t[:, :cut] for n, t in inputs.items()}
    second = {n: t if n == "initial_state" else t[:, cut:] for n, t in inputs.items()}
    o1, middle = gated_delta_rule(**first)
    o2, end = gated_delta_rule(**{**second, "initial_state": middle})
    torch.testing.assert_close(torch.cat([o1, o2], 1), o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, final, rtol=1e-12, atol=1e-12)


def test_no_initial_state_is_zero_state() -> None:
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


def test_one_of_two_gradients() -> None:
    for index in (0, 1):
        grads = []
        for backend in ("reference", "chunked"):
            leaves = {n: t.requires_grad_() for n, t in make_inputs(time=40).items()}
            result = gated_delta_rule(**leaves, backend=backend)[index]
            grads.append(torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True))
        for wanted, actual in zip(*grads, strict=True):
            expected = torch.zeros_like(actual) if wanted is None else wanted
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_second_derivative_is_refused() -> None:
    leaves = [t.requires_grad_() for t in make_inputs(time=3).values()]
    (grad,) = torch.autograd.grad(gated_delta_rule(*leaves)[0].sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Bound: 1.5 times the error of the float64 result of the same rounded inputs, itself rounded to the dtype."""
    inputs = make_inputs(time=100, d_k=16, d_v=16)
    rounded = {n: t.to(torch.float32 if n in ("g", "initial_state") else dtype) for n, t in inputs.items()}
    expected = run({name: t.double() for name, t in rounded.items()}, "reference")
    leaves = {name: t.detach().clone().requires_grad_() for name, t in rounded.items()}
    o, final = gated_delta_rule(**leaves)
    assert o.dtype == dtype and final.dtype == torch.float32
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (o, final)]
    exact = run_with_weights({n: t.double() for n, t in rounded.items()}, [weights[0].to(dtype).double(), weights[1]])
    grads = torch.autograd.grad([o, final], list(leaves.values()), [weights[0].to(dtype), weights[1].float()])
    results = {"o": o, **dict(zip(leaves, grads, strict=True))}
    exact["o"] = expected["o"]
    for name, actual in results.items():
        if actual.dtype != dtype:
            continue
        rounding = (exact[name].to(dtype).double() - exact[name]).norm()
        assert (actual.double() - exact[name]).norm() <= 1.5 * rounding, name
    assert (final.double() - expected["final_state"]).norm() <= 1e-5 * expected["final_state"].norm()


def run_with_weights(inputs: dict[str, Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    outputs = gated_delta_rule(**leaves, backend="reference")
    return dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), weights), strict=True))


def test_backward_keeps_only_the_inputs() -> None:
    inputs = make_inputs(time=256, d_k=16, d_v=16)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        gated_delta_rule(**{name: t.requires_grad_() for name, t in inputs.items()})
    assert 0 < sum(kept) <= 1.2 * sum(t.nbytes for t in inputs.values())


def test_gradients_are_bit_reproducible() -> None:
    inputs = {name: t.float() for name, t in make_inputs(time=70).items()}
    first, second = run(inputs, "chunked"), run(inputs, "chunked")
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_autocast_leaves_it_alone() -> None:
    inputs = {name: t.float() for name, t in make_inputs(time=40).items()}
    expected = run(inputs, "chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(inputs, "chunked")
    assert all(torch.equal(actual[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda t: t[0], r"q has shape \[70, 2, 8\]"),
        ("q", lambda t: t[:, :0], r"q has shape \[2, 0, 2, 8\]"),
        ("k", lambda t: t[..., :3], r"k has shape \[2, 70, 2, 3\].*\[2, 70, 2, 8\]"),
        ("v", lambda t: t[:, :, :1], r"v has shape \[2, 70, 1, 8\].*multiple of 2 key heads"),
        ("g", lambda t: t[..., 0], r"g has shape \[2, 70\].*\[2, 70, 2\]"),
        ("beta", lambda t: t[:, :5], r"beta has shape \[2, 5, 2\]"),
        ("initial_state", lambda t: t[:1], r"initial_state has shape \[1, 2, 8, 8\].*\[2, 2, 8, 8\]"),
        ("initial_state", lambda t: t.float(), r"initial_state has dtype torch.float32.*torch.float64"),
        ("q", lambda t: t.long(), r"q has dtype torch.int64"),
        ("k", lambda t: t.float(), r"k has dtype torch.float32.*torch.float64"),
        ("g", lambda t: t.bfloat16(), r"g has dtype torch.bfloat16"),
    ],
)
def test_wrong_inputs_are_named(name: str, change: object, message: str) -> None:
    inputs = make_inputs()
    inputs[name] = change(inputs[name])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**inputs)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'cuda' is not offered; choose one of auto, chunked, reference"):
        gated_delta_rule(**make_inputs(), backend="cuda")


def test_sequences_beyond_32_bit_offsets_are_left_to_plain_torch() -> None:
    near, far = (torch.empty(2, 1 << 20, 16, d, device="meta") for d in (64, 128))
    assert dispatch.fits_int32_offsets(near, near) and not dispatch.fits_int32_offsets(near, far)
