"""Recorders: CUDA graphs as far as torch's interface can be seen without a GPU, running again, parameters that stand in."""

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
    """What a recorder asks of torch.cuda, whose own signatures it must fit."""
    said, main, pools = [], Stream([], "main"), itertools.count()
    main.log = said
    begin = inspect.signature(torch.cuda.CUDAGraph.capture_begin)

    @contextmanager
    def stream(chosen):
        said.append(f"on {chosen.name}")
        try:
            yield
        finally:
            said.append("back")

    class Graph:
        replay = torch.cuda.CUDAGraph.replay

        def capture_begin(self, *args, **options):
            bound = begin.bind(self, *args, **options)
            assert bound.arguments["capture_error_mode"] == "thread_local"
            said.append(f"capture into {bound.arguments['pool']}")

        def capture_end(self):
            said.append("captured")

    for name, stand_in in {
        "Stream": lambda: Stream(said, "side"), "graph_pool_handle": lambda: next(pools), "current_stream": lambda: main,
        "stream": stream, "CUDAGraph": Graph, "current_device": lambda: 0,
    }.items():  # fmt: skip
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda device, pool: said.append(f"closed {pool}"), raising=False
    )
    return said


def recorded(log):
    log.append("run")
    return {"y": torch.ones(2)}


def test_a_cuda_graph_is_captured_after_the_function_ran_once_on_the_same_stream(log):
    made, again = CudaGraphRecorder().record(partial(recorded, log))
    assert list(made) == ["y"] and again.__name__ == "replay"
    assert log == [
        "side waits for main", "on side", "run", "capture into 1", "run", "captured", "back", "main waits for side",
    ]  # fmt: skip


def test_graphs_share_a_pool_for_as_long_as_one_of_them_lives(log):
    recorder = CudaGraphRecorder()
    kept = [recorder.record(partial(recorded, log)) for _ in range(2)]
    kept.clear()
    gc.collect()
    recorder.record(partial(recorded, log))
    assert [line for line in log if "capture into" in line] == ["capture into 1", "capture into 1", "capture into 2"]


def test_after_a_capture_that_fails_work_goes_on_where_it_was_and_nothing_more_is_recorded(log):
    recorder, runs = CudaGraphRecorder(), itertools.count()

    def run():
        if next(runs):
            raise RuntimeError("not permitted when stream is capturing")
        return {}

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(run)
    assert log[-4:] == ["captured", "closed 1", "back", "main waits for side"]
    with pytest.raises(RuntimeError, match="earlier recording failed"):
        recorder.record(partial(recorded, log))
    assert log[-1] == "main waits for side"


def test_running_again_writes_where_the_first_run_wrote():
    x = torch.zeros(2)
    made, again = EagerReplay().record(lambda: {"y": x + 1})
    process = made["y"]
    x.fill_(3)
    again()
    assert made["y"] is process and process.tolist() == [4, 4]


def test_parameters_that_stand_in_are_at_the_same_addresses_and_unknown_to_autograd():
    model = toy.model(tie=True)
    model.norm.weight.requires_grad_(False)
    model.extra = nn.Linear(1, 1, bias=False)
    model.extra.weight = model.embed.weight  # shared by two modules
    own = dict(model.named_parameters(remove_duplicate=False))
    loss = sum(weight.sum() for weight in own.values())  # autograd knows them now
    with pytest.raises(ZeroDivisionError), aliased_parameters(model) as originals:
        others = dict(model.named_parameters(remove_duplicate=False))
        assert others.keys() == own.keys() and len(originals) == len(set(own.values()))
        for name, other in others.items():
            assert other is not own[name] and originals[other] is own[name]
            assert other.data_ptr() == own[name].data_ptr() and other.requires_grad == own[name].requires_grad
        assert others["extra.weight"] is others["embed.weight"]
        raise ZeroDivisionError
    assert all(weight is own[name] for name, weight in model.named_parameters(remove_duplicate=False))
    loss.backward()
