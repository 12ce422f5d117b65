"""Graph capture: the calls that CudaGraphRecorder makes to torch.cuda, eager replay, and aliased parameters."""

import gc
import inspect
import itertools
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn

from sleeptrain.execute.graph_capture import CudaGraphRecorder, EagerReplay, aliased_parameters
from tests.model import toy


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """The calls to torch.cuda, which are checked against its signatures."""
    calls, main, pools = [], Stream([], "main"), itertools.count()
    main.log = calls
    begin = inspect.signature(torch.cuda.CUDAGraph.capture_begin)

    @contextmanager
    def stream(chosen):
        calls.append(f"on {chosen.name}")
        try:
            yield
        finally:
            calls.append("back")

    class Graph:
        replay = torch.cuda.CUDAGraph.replay

        def capture_begin(self, *args, **options):
            bound = begin.bind(self, *args, **options)
            assert bound.arguments["capture_error_mode"] == "thread_local"
            calls.append(f"capture into {bound.arguments['pool']}")

        def capture_end(self):
            calls.append("captured")

    for name, stand_in in {
        "Stream": lambda: Stream(calls, "side"), "graph_pool_handle": lambda: next(pools), "current_stream": lambda: main,
        "stream": stream, "CUDAGraph": Graph, "current_device": lambda: 0,
    }.items():  # fmt: skip
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda device, pool: calls.append(f"closed {pool}"), raising=False
    )
    return calls


def captured(log):
    log.append("run")
    return {"y": torch.ones(2)}


def test_the_function_runs_once_on_the_capture_stream_before_the_capture(log):
    outputs, replay = CudaGraphRecorder().capture(partial(captured, log))
    assert list(outputs) == ["y"] and replay.__name__ == "replay"
    assert log == [
        "side waits for main", "on side", "run", "capture into 1", "run", "captured", "back", "main waits for side",
    ]  # fmt: skip


def test_graphs_share_a_pool_while_one_of_them_is_alive(log):
    recorder = CudaGraphRecorder()
    graphs = [recorder.capture(partial(captured, log)) for _ in range(2)]
    graphs.clear()
    gc.collect()
    recorder.capture(partial(captured, log))
    assert [line for line in log if "capture into" in line] == ["capture into 1", "capture into 1", "capture into 2"]


def test_a_failed_capture_restores_the_stream_and_later_captures_are_refused(log):
    recorder, runs = CudaGraphRecorder(), itertools.count()

    def run():
        if next(runs):
            raise RuntimeError("not permitted when stream is capturing")
        return {}

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.capture(run)
    assert log[-4:] == ["captured", "closed 1", "back", "main waits for side"]
    with pytest.raises(RuntimeError, match="earlier CUDA graph capture failed"):
        recorder.capture(partial(captured, log))
    assert log[-1] == "main waits for side"


def test_eager_replay_overwrites_the_outputs_of_the_capture():
    x = torch.zeros(2)
    outputs, replay = EagerReplay().capture(lambda: {"y": x + 1})
    y = outputs["y"]
    x.fill_(3)
    replay()
    assert outputs["y"] is y and y.tolist() == [4, 4]


def test_aliased_parameters_share_storage_and_have_no_accumulate_grad():
    model = toy.model(tie=True)
    model.norm.weight.requires_grad_(False)
    model.extra = nn.Linear(1, 1, bias=False)
    model.extra.weight = model.embed.weight  # shared by two modules
    own = dict(model.named_parameters(remove_duplicate=False))
    loss = sum(weight.sum() for weight in own.values())  # creates AccumulateGrad of the originals
    with pytest.raises(ZeroDivisionError), aliased_parameters(model) as originals:
        aliases = dict(model.named_parameters(remove_duplicate=False))
        assert aliases.keys() == own.keys() and len(originals) == len(set(own.values()))
        for name, alias in aliases.items():
            assert alias is not own[name] and originals[alias] is own[name]
            assert alias.data_ptr() == own[name].data_ptr() and alias.requires_grad == own[name].requires_grad
        assert aliases["extra.weight"] is aliases["embed.weight"]
        raise ZeroDivisionError
    assert all(weight is own[name] for name, weight in model.named_parameters(remove_duplicate=False))
    loss.backward()
