"""Fused output projection and cross-entropy against separate linear layer and cross-entropy."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sleep_kernels import linear_cross_entropy
from tests.storages import StorageCounter

module = importlib.import_module("sleep_kernels.linear_cross_entropy")


def make_inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, 11, (3, 5))
    targets[0, :2] = -100
    return [
        torch.randn(3, 5, 8, dtype=dtype).requires_grad_(),
        torch.randn(11, 8, dtype=dtype).requires_grad_(),
        targets,
    ]


def by_formula(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((x @ weight.t()).flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


@pytest.fixture(params=[(1, 200), (4, 200), (8, 400), (16, 100)], ids=str)
def tiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles much smaller than the inputs: one column of all tokens, some of both, all tokens, or the whole vocabulary."""
    min_tile, tile_bytes = request.param
    monkeypatch.setattr(module, "_UNTILED_BYTES", {"cpu": 0})
    monkeypatch.setattr(module, "_MIN_TILE", min_tile)
    monkeypatch.setattr(module, "_TILE_ALIGNMENT", 1)
    monkeypatch.setattr(module, "_TILE_BYTES", {"cpu": tile_bytes})
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 100})


@pytest.fixture
def always_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are never saved, however few they are; tiles have their real sizes."""
    monkeypatch.setattr(module, "_UNTILED_BYTES", {"cpu": 0})


def assert_close(dtype: torch.dtype, bound: float) -> None:
    inputs = make_inputs(dtype)
    expected, actual = by_formula(*inputs), linear_cross_entropy(*inputs)
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)
    weights = torch.rand_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, inputs[:2], weights) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


def assert_z_loss() -> None:
    """The result is the cross-entropy, the gradient that of cross-entropy plus z-loss, written out."""
    x, weight, targets = make_inputs()
    plain, actual = linear_cross_entropy(x, weight, targets), linear_cross_entropy(x, weight, targets, z_loss=0.3)
    assert torch.equal(actual, plain)
    squares = torch.logsumexp(x @ weight.t(), -1).square().masked_fill(targets == -100, 0)
    expected, weights = by_formula(x, weight, targets) + 0.3 * squares, torch.rand_like(plain)
    known = linear_cross_entropy(x, weight, targets, known=plain.detach(), z_loss=0.3)
    wanted = torch.autograd.grad(expected, (x, weight), weights)
    for found in (actual, known):
        for got, want in zip(torch.autograd.grad(found, (x, weight), weights), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_z_loss_in_tiles(tiled: None) -> None:
    assert_z_loss()


def test_z_loss_of_saved_logits() -> None:
    assert_z_loss()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_separate_operators(tiled: None, dtype: torch.dtype, bound: float) -> None:
    assert_close(dtype, bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_separate_operators_where_logits_are_saved(dtype: torch.dtype, bound: float) -> None:
    assert_close(dtype, bound)


def test_gradients_by_finite_differences(tiled: None) -> None:
    x, weight, targets = make_inputs()
    assert torch.autograd.gradcheck(lambda x, weight: linear_cross_entropy(x, weight, targets), (x, weight))


def test_real_tile_sizes_equal_separate_operators(always_tiled: None) -> None:
    """Odd numbers of tokens and vocabulary entries, each divided into several tiles."""
    torch.manual_seed(0)
    x = torch.randn(2, 1031, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(1033, 4, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 1033, (2, 1031))
    targets[1, 5:700] = -100
    rows, columns = module._tiles(x.flatten(0, 1), weight)
    assert len(rows) > 1 and len(columns) > 1
    expected, actual = by_formula(x, weight, targets), linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grads = torch.rand_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, (x, weight), grads) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ignored", [-100, 3])
def test_all_targets_ignored(tiled: None, ignored: int) -> None:
    x, weight, targets = make_inputs()
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, ignored), ignored=ignored)
    assert not loss.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.sum(), (x, weight)))


def test_a_target_outside_the_vocabulary_is_an_error(tiled: None) -> None:
    x, weight, targets = make_inputs()
    targets[1, 1] = 11
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(x, weight, targets)


def test_known_losses_are_not_recomputed(tiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs()
    first = linear_cross_entropy(*inputs)
    grads = torch.rand_like(first)
    wanted = torch.autograd.grad(first, inputs[:2], grads, retain_graph=True)
    with monkeypatch.context() as inside:
        inside.setattr(module, "_tiles", None)
        again = linear_cross_entropy(*inputs, known=first)
    assert torch.equal(again, first)
    for got, right in zip(torch.autograd.grad(again, inputs[:2], grads), wanted, strict=True):
        assert torch.equal(got, right)


@pytest.mark.parametrize(("tokens", "vocab"), [(1, 1), (7, 1 << 20), (513, 151936), (8192, 32768), (1 << 20, 3)])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_tiles_cover_everything_and_are_large_enough(
    kind: str, tokens: int, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "device_kind", lambda _: kind)
    x, weight = (torch.empty(n, 1, device="meta") for n in (tokens, vocab))
    for cuts, count in zip(module._tiles(x, weight), (tokens, vocab), strict=True):
        assert [place for part in cuts for place in (part.start, part.stop)] == [
            0, *(place for part in cuts[1:] for place in (part.start, part.start)), count
        ]  # fmt: skip
        assert len(cuts) == 1 or (cuts[0].stop % 64 == 0 and cuts[0].stop >= 256)
    rows, columns = ([part.stop - part.start for part in cuts] for cuts in module._tiles(x, weight))
    assert max(rows) * max(columns) <= 1.13 * module._tile_size(x)


def test_bfloat16(tiled: None) -> None:
    """Bound: 1.5 times the error of the separate operators, whose logits are rounded to bfloat16 as ours are."""
    inputs = make_inputs(torch.bfloat16)
    exact = by_formula(*(t.detach().double() for t in inputs[:2]), inputs[2])
    loss = linear_cross_entropy(*inputs)
    plain = F.cross_entropy((inputs[0] @ inputs[1].t()).float().flatten(0, 1), inputs[2].flatten(), reduction="none")
    assert loss.dtype == torch.float32
    assert (loss - exact).norm() <= 1.5 * (plain.view(exact.shape) - exact).norm()
    wide = [t.detach().double().requires_grad_() for t in inputs[:2]]
    wanted = torch.autograd.grad(by_formula(*wide, inputs[2]).sum(), wide)
    ours, theirs = (torch.autograd.grad(y.sum(), inputs[:2]) for y in (loss, plain))
    for got, other, right in zip(ours, theirs, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - right).norm() <= 1.5 * (other - right).norm()


def test_saves_no_logits(always_tiled: None) -> None:
    saved: list[int] = []
    inputs = make_inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        linear_cross_entropy(*inputs)
    assert sum(saved) == sum(t.nbytes for t in inputs) + inputs[2].numel() * 8


def test_without_grad_nothing_is_saved() -> None:
    inputs = make_inputs()
    with torch.no_grad():
        assert linear_cross_entropy(*inputs).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_most_one_tile_of_logits_exists(dtype: torch.dtype) -> None:
    """Peak memory besides inputs and results, for 256 MiB of logits: less than 5 % of them."""
    with FakeTensorMode():
        x, weight = torch.empty(2048, 64, dtype=dtype), torch.empty(32768, 64, dtype=dtype)
        targets, loss = torch.empty(2048, dtype=torch.int64), torch.empty(2048)
        with StorageCounter() as forward:
            module.forward(x, weight, targets, None, -100, 0.0)
        with StorageCounter() as backward:
            module.backward(loss, x, weight, targets, loss, -100, 0.1)
    assert 4 << 20 < forward.peak < 13 << 20
    assert backward.peak < (13 << 20) + 2 * (x.nbytes + weight.nbytes)


def test_registration(always_tiled: None) -> None:
    inputs = make_inputs()
    torch.library.opcheck(torch.ops.sleep_kernels.linear_cross_entropy.default, (*inputs, None, -100, 0.0))
    known = linear_cross_entropy(*inputs).detach()
    torch.library.opcheck(torch.ops.sleep_kernels.linear_cross_entropy.default, (*inputs, known, -100, 0.1))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t.long(), "x is torch.int64"),
        (1, lambda t: t[:, :3], r"weight is torch.float64 \[11, 3\]"),
        (1, lambda t: t.float(), "weight is torch.float32"),
        (2, lambda t: t[:2], r"targets is torch.int64 \[2, 5\]"),
    ],
)
def test_wrong_inputs_are_named(index: int, change: object, message: str) -> None:
    inputs = make_inputs()
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*inputs)


def test_known_losses_of_a_wrong_dtype_are_named() -> None:
    with pytest.raises(ValueError, match=r"known is torch.float32 \[3, 5\]; it must be torch.float64"):
        linear_cross_entropy(*make_inputs(), known=torch.zeros(3, 5))
