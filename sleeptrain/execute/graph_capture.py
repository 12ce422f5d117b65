"""How a function of tensors is recorded at fixed addresses: as a CUDA graph, or, without a GPU, by running it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

NamedOutputs = dict[str, Tensor]
"""What a function returns."""


class GraphRecorder(Protocol):
    """Makes recordings."""

    def record(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """What a function returns, and what carries it out again: on what then stands where its inputs stood, into the
        tensors that it returned. The function may run several times meanwhile. RuntimeError where it cannot be recorded."""


class CudaGraphRecorder:
    """Records CUDA graphs. They share memory: each is replayed alone, and its outputs are read before the next one."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: torch.cuda.CUDAGraph | None = None

    def record(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """See `Recorder`. After a capture that failed nothing is recorded any more: what it leaves open in torch's allocator
        cannot all be closed."""
        if self._failed is not None:
            raise RuntimeError("an earlier recording failed in the middle")
        if not self._graphs:  # a pool that nothing uses any more cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.stream.wait_stream(here)
        # Not torch.cuda.graph: that waits for the whole device, on which another stage may wait for a message of this one,
        # and stays on its stream where a capture fails.
        try:
            with torch.cuda.stream(self.stream):
                run()  # libraries set themselves up, kernels are compiled
                made = self._captured(graph, run)
        finally:
            here.wait_stream(self.stream)
        self._graphs.add(graph)
        return made, graph.replay

    def _captured(self, graph: torch.cuda.CUDAGraph, run: Callable[[], NamedOutputs]) -> NamedOutputs:
        try:
            # Other threads, such as NCCL's, may go on meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                return run()
            finally:
                graph.capture_end()
        except BaseException:
            # The allocator calls back into this graph as long as memory goes to its pool, and would do so for ever.
            self._failed = graph
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise


class EagerReplay:
    """Replays by running the function again: what it has baked in by mistake stays what it was, as in a CUDA graph. For
    tests and dry runs on machines without a GPU."""

    def record(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """See `Recorder`."""
        made = run()

        def again() -> None:
            for name, tensor in run().items():
                made[name].copy_(tensor)

        return made, again


@contextmanager
def aliased_parameters(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
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
