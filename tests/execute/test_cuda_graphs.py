"""The graph cache: replays, checks that find wrong graphs, eager fallback, and static gradient buffers."""

import logging
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sleeptrain.execute import cuda_graphs
from sleeptrain.execute.gradients import GradAccumulator, StaticGradAccumulator
from sleeptrain.parallel.collectives import any_of
from sleeptrain.parallel.mesh import MeshAxis
from tests.distributed import run
from tests.execute.eager_replay import CountingReplay, graph_cache


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 3, bias=False)


def call(cache, function, count, *, adds=False, kind="work"):
    """Call the function `count` times through the cache: pairs of result and input."""
    results = []
    for n in range(count):
        x = torch.full((3,), float(n + 1))
        results.append((cache(kind, function, {"x": x}, adds=adds)["y"], x))
    return results


def test_a_graph_is_replayed_after_two_checks_and_returns_copies(model):
    cache = graph_cache().of(model)
    results = call(cache, lambda named: {"y": model(named["x"])}, 5)
    assert all(torch.equal(y, model(x)) for y, x in results)  # no result was overwritten by a later replay
    assert cache.replayed == 5 - cuda_graphs.CHECKS == cache.recorder.replayed - cuda_graphs.CHECKS
    assert cache.recorder.captured == 1
    for x in (torch.ones(2, 3), torch.ones(3, dtype=torch.int64)):  # another shape, another dtype
        cache("work", lambda named: {"y": named["x"] + 1}, {"x": x})
    cache("other work", lambda named: {"y": named["x"] + 1}, {"x": torch.ones(3)})
    assert cache.recorder.captured == 4


def test_a_graph_with_a_constant_output_is_found_and_the_function_runs_eagerly(model, caplog):
    cache = graph_cache().of(model)
    cache.recorder.capture = lambda run, capture=cache.recorder.capture: constant(run, capture)

    def constant(run, capture):
        outputs, replay = capture(run)
        first = outputs["y"].clone()
        return outputs, lambda: (replay(), outputs["y"].copy_(first))

    results = call(cache, lambda named: {"y": model(named["x"])}, 4)
    assert all(torch.equal(y, model(x)) for y, x in results)
    (message,) = caplog.messages  # of the second check: the first has the inputs of the capture
    assert message == (
        "train.cuda_graphs: work runs without a CUDA graph from now on: its replay differs from eager execution in y"
    )
    assert cache.replayed == 0 and cache.recorder.replayed == 2


def test_a_graph_that_does_not_add_a_gradient_is_found(model, caplog):
    cache = graph_cache().of(model)
    own = model.weight

    def adding(named):
        if model.weight is own:  # false during capture
            cache.grads.add([(model.weight, named["x"].repeat(3, 1))])
        return {"y": named["x"] + 1}

    cache.recorder.capture = lambda run: (run(), lambda: None)
    call(cache, adding, 3, adds=True)
    assert caplog.messages[0].endswith("the gradient of weight") and len(caplog.messages) == 1
    assert torch.equal(cache.grads.take(model.weight), torch.full((3, 3), 6.0))


def test_gradients_are_added_once_a_call_however_often_the_function_runs(model):
    cache = graph_cache().of(model)

    def adding(named):
        with torch.enable_grad():
            y = model(named["x"])
        (gradient,) = torch.autograd.grad(y.sum(), [model.weight])
        cache.grads.add([(model.weight, gradient)])
        return {"y": y.detach()}

    for _ in range(2):
        results = call(cache, adding, 4, adds=True)
        assert all(torch.equal(y, model(x)) for y, x in results)
        assert torch.equal(cache.grads.take(model.weight), torch.full((3, 3), 10.0))
    assert cache.replayed == 8 - cuda_graphs.CHECKS
    assert cache.grads.by_weight.keys() == {model.weight}  # not its alias during capture


@pytest.mark.parametrize("wrong", [False, True])
def test_a_graph_may_differ_as_much_as_two_eager_executions_do(model, caplog, wrong):
    """A gradient that nearly cancels: on a GPU, sums in another order then change it by far more than the rounding of its terms."""
    generator = torch.Generator().manual_seed(0)
    own = model.weight

    def adding(named):
        noise = 0.1 * torch.randn(3, 3, generator=generator)
        if wrong and model.weight is not own:  # true in the graph alone
            noise = noise + 1
        cache.grads.add([(model.weight, 1 + noise)])
        return {"y": named["x"] + 1}

    cache = graph_cache().of(model)

    def capture(run):  # a replay runs what was captured, with its alias of the weight
        alias = model.weight
        outputs = run()

        def replay():
            model.weight = alias
            try:
                with cache.grads.aliased_as({alias: own}):
                    outputs["y"].copy_(run()["y"])
            finally:
                model.weight = own

        return outputs, replay

    cache.recorder.capture = capture
    call(cache, adding, 4, adds=True)
    assert [
        message.endswith("differs from eager execution in the gradient of weight") for message in caplog.messages
    ] == [True] * wrong
    assert cache.replayed == (0 if wrong else 4 - cuda_graphs.CHECKS)


def test_a_function_whose_capture_fails_warns_once_and_runs_eagerly(model, caplog):
    class FailingCapture(CountingReplay):
        def capture(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    cache = cuda_graphs.GraphCache(FailingCapture()).of(model)
    results = call(cache, lambda named: {"y": model(named["x"])}, 3)
    assert all(torch.equal(y, model(x)) for y, x in results)
    (message,) = caplog.messages
    assert message.endswith("its capture failed: operation not permitted when stream is capturing")


def wrong_on_rank(wrong_rank, fails):
    """Results, eager runs and messages of a function with an all-reduce, whose graph is wrong, or not captured, on one rank."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("sleeptrain").addHandler(handler)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    runs = []

    def function(named):
        runs.append(1)
        y = named["x"].clone()
        dist.all_reduce(y)
        return {"y": y}

    class OneWrong(CountingReplay):
        def capture(self, run):
            outputs, replay = super().capture(run)
            if rank != wrong_rank:
                return outputs, replay
            if fails:
                raise RuntimeError("out of memory")
            return outputs, lambda: (replay(), outputs["y"].add_(1))

    axis = MeshAxis(rank, 2, None)
    anywhere = partial(any_of, axis, torch.device("cpu"))
    cache = cuda_graphs.GraphCache(OneWrong(), anywhere=anywhere).of(nn.Linear(3, 3))
    return [y for y, _ in call(cache, function, 4)], len(runs), records


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_all_processes_refuse_a_graph_that_one_of_them_refuses(fails):
    """Otherwise one would wait in a collective that the other does not run."""
    (first, first_runs, first_said), (second, second_runs, second_said) = run(wrong_on_rank, 2, 1, fails)
    expected = [torch.full((3,), 2.0 * (n + 1)) for n in range(4)]
    assert all(torch.equal(y, want) for ys in (first, second) for y, want in zip(ys, expected, strict=True))
    assert first_runs == second_runs
    what = "its capture failed: {}" if fails else "its replay differs from eager execution in {}"
    assert [message.split("from now on: ")[1] for message in first_said] == [what.format(cuda_graphs.ELSEWHERE)]
    assert [message.split("from now on: ")[1] for message in second_said] == [
        what.format("out of memory" if fails else "y")
    ]


def test_no_more_graphs_are_captured_than_the_limit(model, caplog, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    cache = graph_cache().of(model)
    for kind in "abca":
        call(cache, lambda named: {"y": model(named["x"])}, 1, kind=kind)
    assert cache.recorder.captured == 2
    assert caplog.messages == [
        "train.cuda_graphs: c runs without a CUDA graph from now on: the limit of 2 graphs is reached"
    ]


def test_nan_is_a_difference_only_where_one_side_has_it(model, caplog):
    cache = graph_cache().of(model)
    call(cache, lambda named: {"y": named["x"] / 0 - named["x"] / 0}, 2)
    assert not caplog.messages
    cache.recorder.capture = lambda run, capture=cache.recorder.capture: with_nan(*capture(run))

    def with_nan(outputs, replay):
        return outputs, lambda: (replay(), outputs["y"].fill_(torch.nan))

    call(cache, lambda named: {"y": named["x"] + 0}, 1, kind="other work")
    assert len(caplog.messages) == 1


def test_graphs_are_dropped_when_weights_change_their_address(model):
    cache = graph_cache()
    for _ in range(2):
        call(cache.of(model), lambda named: {"y": model(named["x"])}, 1)
    assert cache.recorder.captured == 1
    model.weight.data = model.weight.data.clone()
    call(cache.of(model), lambda named: {"y": model(named["x"])}, 1)
    assert cache.recorder.captured == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_buffers_accumulate_the_same_bits(dtype):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, dtype=dtype)) for _ in range(2)]
    plain, fixed = GradAccumulator(), StaticGradAccumulator()
    for _ in range(2):
        for _ in range(5):
            gradient = torch.randn(4, dtype=dtype)
            plain.add([(weights[0], gradient)])
            fixed.add([(weights[0], gradient)])
        address = fixed.of(weights[0]).data_ptr()
        snapshot = fixed.snapshot()
        fixed.add([(weights[0], gradient)])
        fixed.restore(snapshot)
        for weight in weights:
            taken, expected = fixed.take(weight), plain.take(weight)
            assert torch.equal(taken, expected) and taken.dtype == dtype
        assert fixed.of(weights[0]).data_ptr() == address != taken.data_ptr()
