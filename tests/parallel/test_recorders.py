"""Recorders: CUDA graphs as far as torch's interface can be seen without a GPU, running again, parameters that stand in."""

import inspect
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from sleeptrain.parallel.recorders import CudaRecorder, Rerun, strangers
from tests.model import toy


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What a recorder asks of torch.cuda, whose own signatures it must fit."""
    said, main, signature = [], Stream([], "main"), inspect.signature(torch.cuda.graph.__init__)
    main.log = said

    @contextmanager
    def capture(*args, **options):
        bound = signature.bind(None, *args, **options)
        assert bound.arguments["pool"] == (0, 1) and bound.arguments["capture_error_mode"] == "thread_local"
        said.append(f"capture on {bound.arguments['stream'].name}")
        yield
        said.append("captured")

    class Graph:
        replay = torch.cuda.CUDAGraph.replay

    for name, stand_in in {
        "Stream": lambda: Stream(said, "side"), "graph_pool_handle": lambda: (0, 1), "current_stream": lambda: main,
        "stream": lambda _: nullcontext(), "CUDAGraph": Graph, "graph": capture,
    }.items():  # fmt: skip
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return said


def test_a_cuda_graph_is_captured_after_the_function_ran_once_on_the_same_stream(log):
    def run():
        log.append("run")
        return {"y": torch.ones(2)}

    recorder = CudaRecorder()
    made, again = recorder.record(run)
    assert list(made) == ["y"] and again.__name__ == "replay"
    assert log == [
        "side waits for main", "run", "main waits for side", "capture on side", "run", "captured",
    ]  # fmt: skip


def test_running_again_writes_where_the_first_run_wrote():
    x = torch.zeros(2)
    made, again = Rerun().record(lambda: {"y": x + 1})
    place = made["y"]
    x.fill_(3)
    again()
    assert made["y"] is place and place.tolist() == [4, 4]


def test_parameters_that_stand_in_are_at_the_same_addresses_and_unknown_to_autograd():
    model = toy.model(tie=True)
    model.norm.weight.requires_grad_(False)
    model.extra = nn.Linear(1, 1, bias=False)
    model.extra.weight = model.embed.weight  # shared by two modules
    own = dict(model.named_parameters(remove_duplicate=False))
    loss = sum(weight.sum() for weight in own.values())  # autograd knows them now
    with pytest.raises(ZeroDivisionError), strangers(model) as originals:
        others = dict(model.named_parameters(remove_duplicate=False))
        assert others.keys() == own.keys() and len(originals) == len(set(own.values()))
        for name, other in others.items():
            assert other is not own[name] and originals[other] is own[name]
            assert other.data_ptr() == own[name].data_ptr() and other.requires_grad == own[name].requires_grad
        assert others["extra.weight"] is others["embed.weight"]
        raise ZeroDivisionError
    assert all(weight is own[name] for name, weight in model.named_parameters(remove_duplicate=False))
    loss.backward()
