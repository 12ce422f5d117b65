"""The fused last layer and loss against the two in a row."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sleep_kernels import linear_cross_entropy
from sleeptrain.plan.graphs import Live

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
    """Tiles much smaller than the inputs: one column of all tokens, some of both, all tokens or the whole vocabulary."""
    least, room = request.param
    monkeypatch.setattr(module, "_UNTILED_BYTES", {"cpu": 0})
    monkeypatch.setattr(module, "_MIN_TILE", least)
    monkeypatch.setattr(module, "_TILE_ALIGNMENT", 1)
    monkeypatch.setattr(module, "_TILE_BYTES", {"cpu": room})
    monkeypatch.setattr("sleep_kernels.common._TEMPORARY_BYTES", {"cpu": 100})


@pytest.fixture
def however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd keeps no logits, in tiles as they are."""
    monkeypatch.setattr(module, "_UNTILED_BYTES", {"cpu": 0})


def close(dtype: torch.dtype, bound: float) -> None:
    inputs = make_inputs(dtype)
    expected, actual = by_formula(*inputs), linear_cross_entropy(*inputs)
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)
    weights = torch.rand_like(expected)
    for wanted, got in zip(*(torch.autograd.grad(y, inputs[:2], weights) for y in (expected, actual)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_two_in_a_row(tiled: None, dtype: torch.dtype, bound: float) -> None:
    close(dtype, bound)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_two_in_a_row_where_logits_are_few(dtype: torch.dtype, bound: float) -> None:
    close(dtype, bound)


def test_gradients_are_those_of_the_function(tiled: None) -> None:
    x, weight, targets = make_inputs()
    assert torch.autograd.gradcheck(lambda x, weight: linear_cross_entropy(x, weight, targets), (x, weight))


def test_real_tiles_equal_the_two_in_a_row(however_few: None) -> None:
    """Odd numbers of tokens and of words, cut into four tiles of both."""
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
def test_nothing_scored(tiled: None, ignored: int) -> None:
    x, weight, targets = make_inputs()
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, ignored), ignored=ignored)
    assert not loss.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.sum(), (x, weight)))


def test_a_target_that_is_no_token(tiled: None) -> None:
    x, weight, targets = make_inputs()
    targets[1, 1] = 11
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(x, weight, targets)


def test_what_is_known_is_not_computed_again(tiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_tiles_cover_everything_and_are_long_enough(
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
    """Bound: 1.5 times the error of the plain way, whose logits are bfloat16 as ours are."""
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


def test_keeps_no_logits(however_few: None) -> None:
    kept: list[int] = []
    inputs = make_inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        linear_cross_entropy(*inputs)
    assert sum(kept) == sum(t.nbytes for t in inputs) + inputs[2].numel() * 8


def test_without_a_graph_nothing_is_kept() -> None:
    inputs = make_inputs()
    with torch.no_grad():
        assert linear_cross_entropy(*inputs).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_never_more_than_a_tile_of_logits(dtype: torch.dtype) -> None:
    """All that exists at a time beside inputs and results, for 256 MiB of logits: under 5 % of those."""
    with FakeTensorMode():
        x, weight = torch.empty(2048, 64, dtype=dtype), torch.empty(32768, 64, dtype=dtype)
        targets, loss = torch.empty(2048, dtype=torch.int64), torch.empty(2048)
        with Live([x, weight, targets, loss]) as forward:
            module.forward(x, weight, targets, None, -100)
        with Live([x, weight, targets, loss]) as backward:
            module.backward(loss, x, weight, targets, loss, -100)
    assert 4 << 20 < forward.peak < 13 << 20
    assert backward.peak < (13 << 20) + 2 * (x.nbytes + weight.nbytes)


def test_registration(however_few: None) -> None:
    inputs = make_inputs()
    torch.library.opcheck(torch.ops.sleep_kernels.linear_cross_entropy.default, (*inputs, None, -100))
    known = linear_cross_entropy(*inputs).detach()
    torch.library.opcheck(torch.ops.sleep_kernels.linear_cross_entropy.default, (*inputs, known, -100))


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


def test_what_is_known_must_fit() -> None:
    with pytest.raises(ValueError, match=r"known is torch.float32 \[3, 5\]; it must be torch.float64"):
        linear_cross_entropy(*make_inputs(), known=torch.zeros(3, 5))
