"""The tape against plain autograd on every option of the program, among its policies bit for bit, and what it keeps."""

import copy
import importlib

import pytest
import torch

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.program import Evict, Loop, Sleep, compile
from tests.execute import bf16
from tests.model import toy
from tests.model.test_sleep import CASES

POLICIES = ["none", "block", "pass", "window"]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def plain(model, sleep, layout, passes, tokens, targets, valid=None):
    """Loss, gradients and the rest by plain autograd over the unrolled program."""
    m = copy.deepcopy(model)
    result = toy.forward(m, sleep, layout, tokens, targets, passes, valid=valid)
    result.nll.square().sum().backward()  # not the sum: each position's adjoint differs
    return result, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in m.named_parameters()}


def taped(model, sleep, layout, passes, tokens, targets, policy, valid=None, **options):
    m = copy.deepcopy(model)
    program = compile(sleep, layout, len(m.layers), passes)
    rows = MicroBatch(tokens, targets, m.zero_state(sleep, tokens.shape[0]), valid)
    tape = CheckpointedExecutor(m, [rows], program, sleep, policy, **options)
    (result,) = tape.run()
    kept = tape.bytes()
    result.nll.square().sum().backward()
    return result, {n: p.grad for n, p in m.named_parameters()}, kept


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_autograd_and_the_same_bits_under_every_policy(case):
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.model(), toy.batch(layout)
    expected, gradients = plain(model, sleep, layout, passes, tokens, targets)
    found = {p: taped(model, sleep, layout, passes, tokens, targets, p) for p in POLICIES}
    for result, ours, _ in found.values():
        torch.testing.assert_close(result.nll, expected.nll, **EXACT)
        torch.testing.assert_close(result.residual, expected.residual)
        for leaf in expected.state.spec:
            torch.testing.assert_close(result.state[leaf.name], expected.state[leaf.name].detach(), **EXACT)
        for name, gradient in gradients.items():
            torch.testing.assert_close(ours[name], gradient, **EXACT, msg=lambda s, n=name: f"{n}: {s}")
        same(ours, found["none"][1])
    assert gradients["layers.1.mixer.k.weight"].abs().max() > 1e-6


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("case", ["context", "sliding, every"])
def test_logits_in_tiles(case, tie, monkeypatch):
    """As above, where none of a window's logits are kept; in the second half the losses are known."""
    operator = importlib.import_module("sleep_kernels.linear_cross_entropy")
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.model(tie=tie), toy.batch(layout)
    expected, gradients = plain(model, sleep, layout, passes, tokens, targets)
    monkeypatch.setattr(operator, "_UNTILED_BYTES", {"cpu": 0})
    monkeypatch.setattr(operator, "_MIN_TILE", 4)
    monkeypatch.setattr(operator, "_TILE_ALIGNMENT", 1)
    monkeypatch.setattr(operator, "_TILE_BYTES", {"cpu": 100})
    found = {p: taped(model, sleep, layout, passes, tokens, targets, p) for p in POLICIES}
    for result, ours, _ in found.values():
        torch.testing.assert_close(result.nll, expected.nll, **EXACT)
        for name, gradient in gradients.items():
            torch.testing.assert_close(ours[name], gradient, **EXACT, msg=lambda s, n=name: f"{n}: {s}")
        same(ours, found["none"][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["context", "range, embeddings", "sliding, range, every", "last two passes, every"])
def test_policies_agree_bit_for_bit_in_short_types_with_padding_offload_and_a_tied_head(dtype, case):
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.model(dtype=dtype, tie=True), toy.batch(layout, rows=3)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, :2] = valid[1, -3:] = False
    targets[~valid] = -100
    first, *others = (
        taped(model, sleep, layout, passes, tokens, targets, p, valid, offload=o)
        for p in POLICIES
        for o in (False, True)
    )
    for result, gradients, _ in others:
        same(gradients, first[1])
        assert torch.equal(result.nll, first[0].nll)
    if dtype == torch.float32:
        wide, exact = plain(copy.deepcopy(model).double(), sleep, layout, passes, tokens, targets, valid)
        torch.testing.assert_close(first[0].nll.double(), wide.nll.double(), rtol=1e-4, atol=1e-4)
        for name, gradient in exact.items():
            assert (first[1][name].double() - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_micro_batches_of_a_group_add_up_in_one_backward():
    sleep, layout, passes = CASES["range, every"]
    model, (tokens, targets) = toy.model(), toy.batch(layout, rows=4)
    _, expected = plain(model, sleep, layout, passes, tokens, targets)
    program = compile(sleep, layout, len(model.layers), passes)
    group = [MicroBatch(tokens[i : i + 2], targets[i : i + 2], model.zero_state(sleep, 2)) for i in (0, 2)]
    fired = []
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    results = CheckpointedExecutor(model, group, program, sleep, "window").run()
    sum(result.nll.square().sum() for result in results).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], **EXACT)
    assert sorted(fired) == sorted(expected)  # every weight once, though each is used in every pass
    with pytest.raises(RuntimeError, match="goes back once"):
        results[0].nll.sum().backward()


def test_what_is_kept_is_what_the_policy_says():
    """Three windows of four tokens, two of them with three passes; in float32, two rows."""
    sleep, layout, passes = Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding")), toy.windows(4, 3), 3
    model, (tokens, targets) = toy.model(dtype=torch.float32), toy.batch(layout)
    kept = {p: taped(model, sleep, layout, passes, tokens, targets, p)[2] for p in POLICIES}
    h = 2 * 4 * 12 * 4  # rows, tokens, width, bytes
    fast, conv = 2 * (2 * 4 * 4 * 4 * 4), 2 * (2 * 3 * 2 * 16 * 4)  # of the two Gated DeltaNet layers
    kv = 2 * (2 * 2 * 3 * 2 * 4 * 4 + 2 * 3)  # keys, values and which are real, of three tokens, two attention layers
    none = {"received h": 0, "gradients": 0, "kv": 2 * kv}
    # The states that enter the three windows, and the one that is left at the end.
    assert kept["window"] == {"h": 0, "S": 4 * fast, "conv": 4 * conv, "body": 0, **none}
    # Seven passes, of which the first of every window reads tokens; caches change with windows only.
    assert kept["pass"] == {"h": 4 * h, "S": 8 * fast, "conv": 8 * conv, "body": 0, **none}
    # Every pass keeps what enters its four blocks, except for embedded tokens.
    assert kept["block"] == {"h": 4 * h, "S": 8 * fast, "conv": 8 * conv, "body": 7 * 3 * h, **none}
    assert kept["none"]["body"] > 10 * kept["block"]["h"]


def test_sixty_four_uses_of_a_bf16_weight_are_summed_as_well_as_one():
    once, tape, autograd = bf16.compared(1, 1, "pass"), bf16.compared(64, 1, "pass"), bf16.compared(64, 1, None)
    assert tape.error <= once.error < autograd.error
    assert tape.cosine >= once.cosine > autograd.cosine


def test_with_four_passes_over_each_of_sixteen_windows_the_tape_is_nearer_than_autograd():
    tape, autograd = bf16.compared(16, 4, "window"), bf16.compared(16, 4, None)
    assert tape.error < autograd.error and tape.cosine > autograd.cosine
