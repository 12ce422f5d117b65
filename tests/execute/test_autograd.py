"""The checkpointed executor: gradients against plain autograd, recompute policies bit for bit, bytes that are saved."""

import copy
import importlib
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.gradients import GradAccumulator, accumulate, compiled_accumulate
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Evict, Loop, Sleep, compile
from tests.execute.bf16 import gradient_error
from tests.gradients import assert_same_gradients
from tests.model import toy
from tests.model.test_sleep import CASES

POLICIES = ["none", "selective", "block", "pass", "window"]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def by_autograd(model, sleep, layout, passes, tokens, targets, valid=None, starts=()):
    """Outputs and gradients of plain autograd over the unrolled program."""
    m = copy.deepcopy(model)
    result = toy.forward(m, sleep, layout, tokens, targets, passes, valid=valid, starts=dict(starts))
    result.nll.square().sum().backward()  # not the sum, so that the gradient differs at every position
    return result, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in m.named_parameters()}


def by_executor(model, case, tokens, targets, policy, valid=None, starts=(), **options):
    """Outputs, gradients and saved bytes of the executor."""
    sleep, layout, passes = case
    m = copy.deepcopy(model)
    program = compile(sleep, layout, len(m.layers), passes)
    batch = MicroBatch(tokens, targets, m.zero_state(sleep, tokens.shape[0]), valid, starts=dict(starts))
    executor = CheckpointedExecutor(m, [batch], program, sleep, policy, **options)
    (result,) = executor.run()
    saved = executor.bytes()
    result.nll.square().sum().backward()
    return result, {n: p.grad for n, p in m.named_parameters()}, saved


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_autograd_and_have_the_same_bits_under_every_policy(case):
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.model(gated=sleep.gated), toy.batch(layout)
    expected, gradients = by_autograd(model, sleep, layout, passes, tokens, targets)
    by_policy = {p: by_executor(model, (sleep, layout, passes), tokens, targets, p) for p in POLICIES}
    for result, ours, _ in by_policy.values():
        torch.testing.assert_close(result.nll, expected.nll, **EXACT)
        torch.testing.assert_close(result.residual, expected.residual)
        for leaf in expected.state.spec:
            torch.testing.assert_close(result.state[leaf.name], expected.state[leaf.name].detach(), **EXACT)
        assert_same_gradients(ours, gradients)
        assert_same_bits(ours, by_policy["none"][1])
    assert gradients["layers.1.mixer.k.weight"].abs().max() > 1e-6


@pytest.mark.parametrize("case", [pytest.param("context", marks=pytest.mark.slow), "range, every"])
def test_the_options_of_jet_nemotron_have_the_gradients_of_autograd(case):
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.jet(), toy.batch(layout)
    _, gradients = by_autograd(model, sleep, layout, passes, tokens, targets)
    by_policy = {p: by_executor(model, (sleep, layout, passes), tokens, targets, p)[1] for p in POLICIES}
    assert_same_gradients(by_policy["none"], gradients)
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients.values())
    for ours in by_policy.values():
        assert_same_bits(ours, by_policy["none"])


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("case", ["context", "sliding, every"])
def test_gradients_with_tiled_logits_equal_autograd(case, tie, monkeypatch):
    """No logits of a window are saved, and backward gets the losses of forward as `known`."""
    operator = importlib.import_module("sleep_kernels.linear_cross_entropy")
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = toy.model(tie=tie), toy.batch(layout)
    expected, gradients = by_autograd(model, sleep, layout, passes, tokens, targets)
    monkeypatch.setattr(operator, "_UNTILED_BYTES", {"cpu": 0})
    monkeypatch.setattr(operator, "_MIN_TILE", 4)
    monkeypatch.setattr(operator, "_TILE_ALIGNMENT", 1)
    monkeypatch.setattr(operator, "_TILE_BYTES", {"cpu": 100})
    by_policy = {p: by_executor(model, (sleep, layout, passes), tokens, targets, p) for p in POLICIES}
    for result, ours, _ in by_policy.values():
        torch.testing.assert_close(result.nll, expected.nll, **EXACT)
        assert_same_gradients(ours, gradients)
        assert_same_bits(ours, by_policy["none"][1])


LOW_PRECISION = [
    (toy.model, case) for case in ("context", "range, embeddings", "sliding, range, every", "last two passes, every")
] + [pytest.param(toy.jet, "sliding, range, every", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "case"), LOW_PRECISION)
def test_policies_agree_bit_for_bit_in_low_precision_with_padding_documents_offload_and_a_tied_head(dtype, make, case):
    sleep, layout, passes = CASES[case]
    model, (tokens, targets) = make(dtype=dtype, tie=True), toy.batch(layout, rows=3)
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    valid[0, :2] = valid[1, -3:] = False
    targets[~valid] = -100
    starts = toy.starts(layout, valid, rows=3)
    first, *others = (
        by_executor(model, (sleep, layout, passes), tokens, targets, p, valid, starts, offload=o)
        for p in POLICIES
        for o in (False, True)
    )
    for result, gradients, _ in others:
        assert_same_bits(gradients, first[1])
        assert torch.equal(result.nll, first[0].nll)
    if dtype == torch.float32:
        wide, exact = by_autograd(copy.deepcopy(model).double(), sleep, layout, passes, tokens, targets, valid, starts)
        torch.testing.assert_close(first[0].nll.double(), wide.nll.double(), rtol=1e-4, atol=1e-4)
        for name, gradient in exact.items():
            assert (first[1][name].double() - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_gradients_of_a_group_of_micro_batches_accumulate_in_one_backward():
    sleep, layout, passes = CASES["range, every"]
    model, (tokens, targets) = toy.model(), toy.batch(layout, rows=4)
    _, expected = by_autograd(model, sleep, layout, passes, tokens, targets)
    program = compile(sleep, layout, len(model.layers), passes)
    group = [MicroBatch(tokens[i : i + 2], targets[i : i + 2], model.zero_state(sleep, 2)) for i in (0, 2)]
    fired = []
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    results = CheckpointedExecutor(model, group, program, sleep, "window").run()
    sum(result.nll.square().sum() for result in results).backward()
    assert_same_gradients({name: weight.grad for name, weight in model.named_parameters()}, expected)
    assert sorted(fired) == sorted(expected)  # the hook fires once per weight, although every pass uses it
    with pytest.raises(RuntimeError, match="only once per run"):
        results[0].nll.sum().backward()


def test_saved_bytes_are_those_of_the_policy():
    """Two rows in float32 of three windows of four tokens, of which two have three passes."""
    sleep, layout, passes = Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding")), toy.windows(4, 3), 3
    model, (tokens, targets) = toy.model(dtype=torch.float32), toy.batch(layout)
    saved = {p: by_executor(model, (sleep, layout, passes), tokens, targets, p)[2] for p in POLICIES}
    h = 2 * 4 * 12 * 4  # rows, tokens, width, bytes
    fast, conv = 2 * (2 * 4 * 4 * 4 * 4), 2 * (2 * 3 * 2 * 16 * 4)  # of the two Gated DeltaNet layers
    kv = 2 * (2 * 2 * 3 * 2 * 4 * 4 + 2 * 3)  # keys, values and padding mask of three tokens in two attention layers
    none = {"received h": 0, "gradients": 0, "kv": 2 * kv}
    # The states entering the three windows, and the final one.
    assert saved["window"] == {"h": 0, "S": 4 * fast, "conv": 4 * conv, "body": 0, **none}
    # Seven passes, of which the first of every window reads tokens; caches change between windows only.
    assert saved["pass"] == {"h": 4 * h, "S": 8 * fast, "conv": 8 * conv, "body": 0, **none}
    # Every pass saves the input features of its four blocks, except the embedded tokens.
    assert saved["block"] == {"h": 4 * h, "S": 8 * fast, "conv": 8 * conv, "body": 7 * 3 * h, **none}
    assert saved["none"]["body"] > 10 * saved["block"]["h"]


def test_selective_recompute_runs_no_product_again():
    """Each product runs once in forward; its backward multiplies twice, as without recompute."""
    sleep, layout, passes = CASES["context"]
    model, (tokens, targets) = toy.model(), toy.batch(layout)
    counts = {}
    for policy in ("none", "selective", "block"):
        with OperatorCounter() as counter:
            by_executor(model, (sleep, layout, passes), tokens, targets, policy)
        counts[policy] = counter.counts
    head = counts["selective"]["aten::mm"] - counts["none"]["aten::mm"]
    assert head == 1  # of the one window that is scored
    for name in ("aten::_scaled_dot_product_flash_attention_for_cpu", "sleep_kernels::gated_delta_rule_chunked"):
        assert counts["selective"][name] == counts["none"][name] < counts["block"][name]
    assert counts["none"]["aten::silu"] < counts["selective"]["aten::silu"] == counts["block"]["aten::silu"]


class OperatorCounter(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_the_gradient_of_64_uses_of_a_bf16_weight_is_as_exact_as_that_of_one_use():
    one_use = gradient_error(1, 1, "pass")
    executor, autograd = gradient_error(64, 1, "pass"), gradient_error(64, 1, None)
    assert executor.error <= one_use.error < autograd.error
    assert executor.cosine >= one_use.cosine > autograd.cosine


def test_bf16_gradients_of_four_passes_over_sixteen_windows_are_more_exact_than_autograds():
    executor, autograd = gradient_error(16, 4, "window"), gradient_error(16, 4, None)
    assert executor.error < autograd.error and executor.cosine > autograd.cosine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_accumulation_has_the_same_bits(dtype):
    """In sums of the accumulator and in buffers of an engine; the first use of a weight without a buffer starts its sum."""
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 4), (5,), (2, 1))]
    results = []
    for add in (accumulate, compiled_accumulate("aot_eager")):
        torch.manual_seed(0)
        buffers = {weights[0]: torch.zeros(3, 4)}
        grads = GradAccumulator(buffers, accumulate=add)
        for used in (weights, weights[:2], weights[1:], weights):
            grads.add([(weight, torch.randn(weight.shape).to(dtype)) for weight in used])
        results.append([buffers[weights[0]], *(grads.of(weight) for weight in weights[1:])])
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other) and one.any()
