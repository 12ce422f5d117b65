"""Passes replayed as CUDA graphs against eager execution: equal bits over steps with changing weights and batches."""

import copy
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.model.compile_blocks import compile_blocks
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Evict, Loop, Sleep, compile
from tests.distributed import run
from tests.execute import stages
from tests.execute.eager_replay import CountingReplay, graph_cache
from tests.model import toy
from tests.model.test_sleep import CASES
from tests.recorded_graphs import recording

STEPS = 3
QUICK = (
    "every",
    "normed",
    "gated",
    "strict",
    "sliding, range, every",
    "last two passes, range, embeddings",
    "horizon of one window",
)
EVERY = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def train_copy(model, *args, **options):
    """The results of `train` with a copy of a model, and the final weights."""
    model = copy.deepcopy(model)
    return [*train(model, *args, **options), *model.parameters()]


def train(model, case, policy, cache, *, padded=False, offload=False, steps=STEPS):
    """Losses, residuals, states and gradients of steps of gradient descent, each on another batch."""
    sleep, layout, passes = case
    results = []
    program = compile(sleep, layout, len(model.layers), passes)
    for step in range(steps):
        group = [micro_batch(model, sleep, layout, 2 * step + micro, padded and micro == 0) for micro in range(2)]
        options = ExecutorOptions(graph_cache=cache)
        outputs = CheckpointedExecutor(model, group, program, sleep, policy, offload=offload, options=options).run()
        model.zero_grad()
        stages.loss_of(outputs).backward()
        for output in outputs:
            results += [output.nll.detach(), output.residual, *output.state.flat()]
        with torch.no_grad():
            for weight in model.parameters():
                results.append(weight.grad.clone())
                weight -= 0.05 * weight.grad / (1 + weight.grad.abs().max())
    return results


def micro_batch(model, sleep, layout, seed, padded):
    tokens, targets = toy.batch(layout, seed=seed + 1)
    valid = None
    if padded:
        valid = torch.ones(tokens.shape, dtype=torch.bool)
        valid[seed % 2, : 1 + seed % 3] = valid[1 - seed % 2, -2:] = False
        targets[~valid] = -100
    starts = toy.starts(layout, valid) if padded else {}
    return MicroBatch(tokens, targets, model.zero_state(sleep, 2), valid, starts=starts)


def assert_same_bits(actual, expected):
    assert len(actual) == len(expected) and all(tensor.isfinite().all() for tensor in expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", EVERY)
def test_replayed_passes_compute_the_same_bits_on_every_option_of_the_program(case, caplog):
    number = list(CASES).index(case)
    policy = ("block", "pass", "window")[number % 3]
    model, cache = (
        toy.model(dtype=torch.float32, tie=number % 2 == 0, gated=CASES[case][0].gated),
        graph_cache(),
    )
    with caplog.at_level(logging.WARNING, "sleeptrain"):
        actual = train_copy(model, CASES[case], policy, cache)
    assert not caplog.messages
    assert_same_bits(actual, train_copy(model, CASES[case], policy, None))
    recorder = cache.recorder
    assert recorder.captured <= 24 and cache.replayed > 2 * recorder.captured


@pytest.mark.parametrize("case, policy", [("sliding, range, every", "window"), ("every", "pass"), ("context", "block")])
def test_replay_with_padding_and_documents_in_some_steps_bf16_and_offload(case, policy, caplog):
    model, cache = toy.model(dtype=torch.bfloat16, tie=True), graph_cache()
    options = {"padded": True, "offload": True, "steps": 4}
    actual = train_copy(model, CASES[case], policy, cache, **options)
    assert_same_bits(actual, train_copy(model, CASES[case], policy, None, **options))
    assert cache.replayed > 2 * cache.recorder.captured and not caplog.messages


def test_more_passes_and_windows_need_no_more_graphs():
    """The number of passes may be drawn and positions may count from the start of the document: graphs read tensors."""
    model, cache = toy.model(dtype=torch.float32), graph_cache()
    sleep = Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding"))
    counts = []
    for passes, windows in ((3, 4), (2, 6), (5, 9)):
        train(model, (sleep, toy.windows(4, windows), passes), "window", cache, steps=1)
        counts.append(cache.recorder.captured)
    assert counts[0] > 4 and counts == [counts[0]] * 3


def test_policy_none_is_refused():
    with pytest.raises(ValueError, match="use another policy"):
        train_copy(toy.model(), CASES["context"], "none", graph_cache(), steps=1)


def train_stage(case, policy, padded):
    """Two steps of one pipeline stage without and with graphs: whether all bits are equal, the number of tensors compared,
    of replays and of captures."""
    p2p, (sleep, layout, passes) = stages.p2p_channels(), CASES[case]
    runs, cache = [], graph_cache()
    for graphs in (None, cache):
        whole = toy.model(dtype=torch.float32, tie=True, gated=sleep.gated)
        local = stages.stage_model(whole, sleep, (2,), p2p.stage)
        options = ExecutorOptions(graph_cache=graphs)
        pipeline = stages.pipeline(p2p, whole, sleep, (2,), policy, options=options)
        program, results = compile(sleep, layout, 4, passes), []
        for _ in range(2):
            outputs = pipeline.run(local, stages.micro_batches(local, sleep, layout, 3, padded), program)
            local.zero_grad()
            stages.loss_of(outputs).backward()
            results += [t for r in outputs for t in (r.nll.detach(), r.residual, *r.state.flat())]
            with torch.no_grad():
                for weight in local.parameters():
                    results.append(weight.grad.clone())
                    weight -= 0.05 * weight.grad / (1 + weight.grad.abs().max())
        runs.append(results)
    same = [torch.equal(one, other) for one, other in zip(*runs, strict=True)]
    return all(same), len(same), cache.replayed, cache.recorder.captured


def train_stage_on(cases):
    return [train_stage(*case) for case in cases]


@pytest.mark.slow
def test_two_stages_that_replay_compute_the_same_bits():
    cases = [("normed", "pass", False), ("sliding, range, every", "window", True)]
    for by_case in run(train_stage_on, 2, cases):
        for same, count, replayed, captured in by_case:
            assert same and count > 20 and replayed > captured > 2


HOST = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "is_nonzero")
"""Methods that synchronize with the device, which a capture does not allow."""


class CapturableOnly(TorchDispatchMode):
    """Raises for operators that read values on the host, whose output shapes depend on values, or that leave the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            raise AssertionError(f"{func} reads values")
        device = (kwargs or {}).get("device")
        assert device in (None, torch.device("cpu")), f"{func} leaves the device for {device}"
        assert "lift_fresh" not in str(func), "host numbers are copied to the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["context", "sliding, range, every"])
def test_a_captured_pass_never_synchronizes_with_the_device(case, monkeypatch):
    """As far as this can be checked without a GPU; with padding."""
    captured = []

    class CheckedCapture(CountingReplay):
        def capture(self, run):
            def checked():
                captured.append(True)
                with monkeypatch.context() as patch, CapturableOnly():
                    for name in HOST:
                        patch.setattr(torch.Tensor, name, forbidden(name))
                    return run()

            return checked(), lambda: None

    def forbidden(name):
        def raises(*_):
            raise AssertionError(f"Tensor.{name} synchronizes")

        return raises

    cache = GraphCache(CheckedCapture())
    train_copy(toy.model(dtype=torch.bfloat16), CASES[case], "pass", cache, padded=True, steps=1)
    assert len(captured) > 5
    with pytest.raises(AssertionError, match=r"reads values"):
        CheckedCapture().capture(lambda: {"y": torch.ones(2)[torch.ones(2).max() > 0]})
    with pytest.raises(AssertionError, match="reads values"), CapturableOnly():
        torch.ones(2).max().item()


@pytest.mark.exhaustive
def test_graphs_of_compiled_blocks_replay_the_same_bits():
    """What `auto` turns on together on a GPU. Captures give the blocks other parameters, which must not be compiled again each time."""
    found = []
    for cache in (None, graph_cache()):
        compiled, model = [], toy.model(dtype=torch.float64)
        torch._dynamo.reset()
        compile_blocks(model, recording(compiled))
        found.append((train(model, CASES["every"], "pass", cache), len(compiled)))
    (expected, before), (actual, after) = found
    assert_same_bits(actual, expected)
    assert cache.refused == 0 and cache.replayed > 0 and cache.recorder.captured > after - before
