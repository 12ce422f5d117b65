"""Recordings by themselves: what is replayed, what is found out about a wrong one, and sums that stay in their place."""

import pytest
import torch
from torch import nn

from sleeptrain.execute import cuda_graphs
from sleeptrain.execute.gradients import GradAccumulator, StaticGradAccumulator
from tests.execute.eager_replay import Counted, graph_cache


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 3, bias=False)


def calls(recordings, function, count, *, adds=False, kind="work"):
    """Its results on different inputs, and those of the function itself."""
    found = []
    for n in range(count):
        x = torch.full((3,), float(n + 1))
        found.append((recordings(kind, function, {"x": x}, adds=adds)["y"], x))
    return found


def test_a_recording_is_used_after_two_checks_and_its_results_are_the_callers_own(model):
    recordings = graph_cache(torch.float32).of(model)
    found = calls(recordings, lambda named: {"y": model(named["x"])}, 5)
    assert all(torch.equal(y, model(x)) for y, x in found)  # none was written over by a later one
    assert recordings.replayed == 5 - cuda_graphs.CHECKS == recordings.recorder.replayed - cuda_graphs.CHECKS
    assert recordings.recorder.recorded == 1
    for x in (torch.ones(2, 3), torch.ones(3, dtype=torch.int64)):  # another shape, another type
        recordings("work", lambda named: {"y": named["x"] + 1}, {"x": x})
    recordings("other work", lambda named: {"y": named["x"] + 1}, {"x": torch.ones(3)})
    assert recordings.recorder.recorded == 4


def test_what_was_baked_in_is_found_out_and_the_function_used_from_then_on(model, caplog):
    recordings = graph_cache(torch.float32).of(model)
    recordings.recorder.record = lambda run, record=recordings.recorder.record: baked(run, record)

    def baked(run, record):
        made, again = record(run)
        first = made["y"].clone()
        return made, lambda: (again(), made["y"].copy_(first))

    found = calls(recordings, lambda named: {"y": model(named["x"])}, 4)
    assert all(torch.equal(y, model(x)) for y, x in found)
    (said,) = caplog.messages  # the first check sees the very inputs, and cannot know
    assert said == "train.cuda_graphs: work is launched kernel by kernel from here on: its recording missed y"
    assert recordings.replayed == 0 and recordings.recorder.replayed == 2


def test_a_gradient_that_a_recording_does_not_add_is_found_out(model, caplog):
    recordings = graph_cache(torch.float32).of(model)
    own = model.weight

    def adding(named):
        if model.weight is own:  # not while it is recorded
            recordings.sums.add(model.weight, named["x"].repeat(3, 1))
        return {"y": named["x"] + 1}

    recordings.recorder.record = lambda run: (run(), lambda: None)
    calls(recordings, adding, 3, adds=True)
    assert "the gradient of a weight of shape [3, 3]" in caplog.messages[0] and len(caplog.messages) == 1
    assert torch.equal(recordings.sums.take(model.weight), torch.full((3, 3), 6.0))


def test_gradients_are_added_once_a_call_however_often_the_function_runs(model):
    recordings = graph_cache(torch.float32).of(model)

    def adding(named):
        with torch.enable_grad():
            y = model(named["x"])
        (gradient,) = torch.autograd.grad(y.sum(), [model.weight])
        recordings.sums.add(model.weight, gradient)
        return {"y": y.detach()}

    for _ in range(2):
        found = calls(recordings, adding, 4, adds=True)
        assert all(torch.equal(y, model(x)) for y, x in found)
        assert torch.equal(recordings.sums.take(model.weight), torch.full((3, 3), 10.0))
    assert recordings.replayed == 8 - cuda_graphs.CHECKS
    assert recordings.sums.totals.keys() == {model.weight}  # not what stood for it while it was recorded


def test_what_cannot_be_recorded_is_said_once_and_run(model, caplog):
    class Refuses(Counted):
        def record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    recordings = cuda_graphs.GraphCache(Refuses(), torch.float32).of(model)
    found = calls(recordings, lambda named: {"y": model(named["x"])}, 3)
    assert all(torch.equal(y, model(x)) for y, x in found)
    (said,) = caplog.messages
    assert said.endswith("it cannot be recorded: operation not permitted when stream is capturing")


def test_so_many_recordings_and_no_more(model, caplog, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    recordings = graph_cache(torch.float32).of(model)
    for kind in "abca":
        calls(recordings, lambda named: {"y": model(named["x"])}, 1, kind=kind)
    assert recordings.recorder.recorded == 2
    assert caplog.messages == [
        "train.cuda_graphs: c is launched kernel by kernel from here on: there are 2 recordings already"
    ]


def test_numbers_that_are_none_are_no_difference_unless_one_side_has_them(model, caplog):
    recordings = graph_cache(torch.float32).of(model)
    calls(recordings, lambda named: {"y": named["x"] / 0 - named["x"] / 0}, 2)
    assert not caplog.messages
    recordings.recorder.record = lambda run, record=recordings.recorder.record: spoiled(*record(run))

    def spoiled(made, again):
        return made, lambda: (again(), made["y"].fill_(torch.nan))

    calls(recordings, lambda named: {"y": named["x"] + 0}, 1, kind="other work")
    assert len(caplog.messages) == 1


def test_recordings_are_forgotten_when_weights_have_moved(model):
    recordings = graph_cache(torch.float32)
    for _ in range(2):
        calls(recordings.of(model), lambda named: {"y": model(named["x"])}, 1)
    assert recordings.recorder.recorded == 1
    model.weight.data = model.weight.data.clone()
    calls(recordings.of(model), lambda named: {"y": model(named["x"])}, 1)
    assert recordings.recorder.recorded == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_one_place_are_the_others(dtype):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, dtype=dtype)) for _ in range(2)]
    plain, fixed = GradAccumulator(torch.float32), StaticGradAccumulator(torch.float32)
    for _ in range(2):
        for _ in range(5):
            gradient = torch.randn(4, dtype=dtype)
            plain.add(weights[0], gradient)
            fixed.add(weights[0], gradient)
        process = fixed.of(weights[0]).data_ptr()
        saved = fixed.saved()
        fixed.add(weights[0], gradient)
        fixed.load(saved)
        for weight in weights:
            taken, wanted = fixed.take(weight), plain.take(weight)
            assert torch.equal(taken, wanted) and taken.dtype == dtype
        assert fixed.of(weights[0]).data_ptr() == process != taken.data_ptr()
