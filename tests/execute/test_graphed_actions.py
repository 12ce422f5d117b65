"""Recorded passes against the tape that launches every kernel: equal bits over steps in which weights and batches change."""

import copy
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.execute.autograd import CheckpointedExecutor
from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.program import Evict, Loop, Sleep, compile
from tests.distributed import run
from tests.execute import stages as cut
from tests.execute.eager_replay import Counted, graph_cache
from tests.model import toy
from tests.model.test_sleep import CASES

STEPS = 3
QUICK = (
    "every",
    "normed",
    "strict",
    "sliding, range, every",
    "last two passes, range, embeddings",
    "horizon of one window",
)
EVERY = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def trained(model, *how, **options):
    """What `steps_of` finds with a copy of a model, and the weights that are left."""
    model = copy.deepcopy(model)
    return [*steps_of(model, *how, **options), *model.parameters()]


def steps_of(model, case, policy, recordings, *, padded=False, offload=False, steps=STEPS):
    """Losses, states, residuals and gradients of some steps of plain gradient descent, each on another batch."""
    sleep, layout, passes = case
    found = []
    program = compile(sleep, layout, len(model.layers), passes)
    for step in range(steps):
        group = [rows(model, sleep, layout, 2 * step + micro, padded and micro == 0) for micro in range(2)]
        tape = CheckpointedExecutor(
            model, group, program, sleep, policy, offload=offload, sum_dtype=torch.float32, graph_cache=recordings
        )
        results = tape.run()
        model.zero_grad()
        sum(result.nll.square().sum() for result in results).backward()
        for result in results:
            found += [result.nll.detach(), result.residual, *result.state.flat()]
        with torch.no_grad():
            for weight in model.parameters():
                found.append(weight.grad.clone())
                weight -= 0.05 * weight.grad / (1 + weight.grad.abs().max())
    return found


def rows(model, sleep, layout, seed, padded):
    tokens, targets = toy.batch(layout, seed=seed + 1)
    valid = None
    if padded:
        valid = torch.ones(tokens.shape, dtype=torch.bool)
        valid[seed % 2, : 1 + seed % 3] = valid[1 - seed % 2, -2:] = False
        targets[~valid] = -100
    return MicroBatch(tokens, targets, model.zero_state(sleep, 2), valid)


def equal(found, expected):
    assert len(found) == len(expected) and all(tensor.isfinite().all() for tensor in expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", EVERY)
def test_recorded_passes_compute_the_same_bits_on_every_option_of_the_program(case, caplog):
    number = list(CASES).index(case)
    policy = ("block", "pass", "window")[number % 3]
    model, recordings = toy.model(dtype=torch.float32, tie=number % 2 == 0), graph_cache(torch.float32)
    with caplog.at_level(logging.WARNING, "sleeptrain"):
        found = trained(model, CASES[case], policy, recordings)
    assert not caplog.messages
    equal(found, trained(model, CASES[case], policy, None))
    recorder = recordings.recorder
    assert recorder.recorded <= 24 and recordings.replayed > 2 * recorder.recorded


@pytest.mark.parametrize("case, policy", [("sliding, range, every", "window"), ("every", "pass"), ("context", "block")])
def test_padding_that_comes_and_goes_short_types_and_what_waits_on_the_host(case, policy, caplog):
    model, recordings = toy.model(dtype=torch.bfloat16, tie=True), graph_cache(torch.float32)
    options = {"padded": True, "offload": True, "steps": 4}
    found = trained(model, CASES[case], policy, recordings, **options)
    equal(found, trained(model, CASES[case], policy, None, **options))
    assert recordings.replayed > 2 * recordings.recorder.recorded and not caplog.messages


def test_the_number_of_passes_and_of_windows_brings_no_recordings():
    """A draw of the number of passes, and positions from the start of the document, are in the tensors."""
    model, recordings = toy.model(dtype=torch.float32), graph_cache(torch.float32)
    sleep = Sleep(window=4, loop=Loop(trigger="every"), evict=Evict("sliding"))
    counts = []
    for passes, windows in ((3, 4), (2, 6), (5, 9)):
        steps_of(model, (sleep, toy.windows(4, windows), passes), "window", recordings, steps=1)
        counts.append(recordings.recorder.recorded)
    assert counts[0] > 4 and counts == [counts[0]] * 3


def test_graphs_that_are_kept_cannot_be_replayed():
    with pytest.raises(ValueError, match="use another policy"):
        trained(toy.model(), CASES["context"], "none", graph_cache(torch.float32), steps=1)


def stages(case, policy, padded):
    """Two steps of one stage of a pipeline with and without recordings: whether all bits are equal, and the recordings."""
    ways, (sleep, layout, passes) = cut.edges(), CASES[case]
    found, recordings = [], graph_cache(torch.float32)
    for replayed in (None, recordings):
        whole = toy.model(dtype=torch.float32, tie=True)
        mine = cut.share(whole, sleep, (2,), ways.stage)
        line = cut.pipeline(ways, whole, sleep, (2,), policy, graph_cache=replayed)
        program, made = compile(sleep, layout, 4, passes), []
        for _ in range(2):
            results = line.run(mine, cut.micro_batches(mine, sleep, layout, 3, padded), program)
            mine.zero_grad()
            cut.loss_of(results).backward()
            made += [t for r in results for t in (r.nll.detach(), r.residual, *r.state.flat())]
            with torch.no_grad():
                for weight in mine.parameters():
                    made.append(weight.grad.clone())
                    weight -= 0.05 * weight.grad / (1 + weight.grad.abs().max())
        found.append(made)
    alike = [torch.equal(one, other) for one, other in zip(*found, strict=True)]
    return all(alike), len(alike), recordings.replayed, recordings.recorder.recorded


def several(cases):
    return [stages(*case) for case in cases]


def test_two_stages_compute_the_same_bits():
    cases = [("normed", "pass", False), ("sliding, range, every", "window", True)]
    for of_a_stage in run(several, 2, cases):
        for alike, count, replayed, recorded in of_a_stage:
            assert alike and count > 20 and replayed > recorded > 2


HOST = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "is_nonzero")
"""Methods that make the host wait for the device; a capture does not allow it."""


class OnTheDevice(TorchDispatchMode):
    """Raises for operators that look at a value, whose results' shapes depend on one, or that leave the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            raise AssertionError(f"{func} looks at values")
        device = (kwargs or {}).get("device")
        assert device in (None, torch.device("cpu")), f"{func} goes to {device}"
        assert "lift_fresh" not in str(func), "a tensor from numbers of the host is copied to the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["context", "sliding, range, every"])
def test_a_pass_can_be_captured_as_far_as_this_can_be_seen_without_a_gpu(case, monkeypatch):
    """While it is recorded nothing asks the device for a value. Padding as well."""
    watching = []

    class Watched(Counted):
        def record(self, run):
            def watched():
                watching.append(True)
                with monkeypatch.context() as patch, OnTheDevice():
                    for name in HOST:
                        patch.setattr(torch.Tensor, name, never(name))
                    return run()

            return watched(), lambda: None

    def never(name):
        def raises(*_):
            raise AssertionError(f"Tensor.{name} makes the host wait")

        return raises

    recordings = GraphCache(Watched(), torch.float32)
    trained(toy.model(dtype=torch.bfloat16), CASES[case], "pass", recordings, padded=True, steps=1)
    assert len(watching) > 5
    with pytest.raises(AssertionError, match=r"looks at values"):
        Watched().record(lambda: {"y": torch.ones(2)[torch.ones(2).max() > 0]})
    with pytest.raises(AssertionError, match="looks at values"), OnTheDevice():
        torch.ones(2).max().item()
