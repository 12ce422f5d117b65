"""How a function of tensors is recorded at fixed addresses: as a CUDA graph, or, without a GPU, by running it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

Made = dict[str, Tensor]
"""What a function returns."""


class Recorder(Protocol):
    """Makes recordings."""

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """What a function returns, and what carries it out again: on what then stands where its inputs stood, into the
        tensors that it returned. The function may run several times meanwhile. RuntimeError where it cannot be recorded."""


class CudaRecorder:
    """Records CUDA graphs. They share memory: each is replayed alone, and its outputs are read before the next one."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """See `Recorder`."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            run()  # libraries set themselves up, kernels are compiled
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's, may go on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            made = run()
        return made, graph.replay


class Rerun:
    """Replays by running the function again: what it has baked in by mistake stays what it was, as in a CUDA graph. For
    tests and dry runs on machines without a GPU."""

    def record(self, run: Callable[[], Made]) -> tuple[Made, Callable[[], None]]:
        """See `Recorder`."""
        made = run()

        def again() -> None:
            for name, tensor in run().items():
                made[name].copy_(tensor)

        return made, again


@contextmanager
def strangers(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """The model with other parameters at the same addresses, of which autograd knows nothing yet; gives the own ones by
    them. autograd remembers the stream on which it first met a parameter, and would draw that one into a capture."""
    others: dict[Tensor, nn.Parameter] = {}
    places = [(module, name) for module in model.modules() for name in module._parameters]
    own = [module._parameters[name] for module, name in places]
    try:
        for (module, name), weight in zip(places, own, strict=True):
            if weight is not None:
                if weight not in others:
                    others[weight] = nn.Parameter(weight.detach(), weight.requires_grad)
                module._parameters[name] = others[weight]
        yield {other: weight for weight, other in others.items()}
    finally:
        for (module, name), weight in zip(places, own, strict=True):
            module._parameters[name] = weight
