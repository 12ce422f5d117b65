"""Capture of a function as a CUDA graph, or, without a GPU, as a replay that runs the function again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

NamedOutputs = dict[str, Tensor]
"""The outputs of a captured function."""


class GraphRecorder(Protocol):
    """Captures functions for replay."""

    def capture(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """Capture a function of tensors at fixed addresses: its outputs, and a function that replays it.

        A replay reads the inputs at their addresses and overwrites the outputs. Capture may run the function several
        times. Raises RuntimeError for a function that cannot be captured.
        """


class CudaGraphRecorder:
    """Captures CUDA graphs that share one memory pool.

    Sharing is safe because graphs are replayed one at a time and the outputs of one are copied before the next replay.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: torch.cuda.CUDAGraph | None = None

    def capture(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """See `GraphRecorder`. After a failed capture every later one is refused, because torch's allocator cannot be
        restored completely."""
        if self._failed is not None:
            raise RuntimeError("an earlier CUDA graph capture failed")
        if not self._graphs:  # a pool without live graphs cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.stream.wait_stream(current)
        # torch.cuda.graph() is not used: it synchronizes the whole device, which deadlocks when another stage waits for a
        # message of this one, and it leaves its stream current when a capture fails.
        try:
            with torch.cuda.stream(self.stream):
                run()  # warm-up: library handles are created and kernels compiled outside of the capture
                outputs = self._capture_graph(graph, run)
        finally:
            current.wait_stream(self.stream)
        self._graphs.add(graph)
        return outputs, graph.replay

    def _capture_graph(self, graph: torch.cuda.CUDAGraph, run: Callable[[], NamedOutputs]) -> NamedOutputs:
        try:
            # thread_local: other threads, such as NCCL's watchdog, may call CUDA during the capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                return run()
            finally:
                graph.capture_end()
        except BaseException:
            # While the allocator routes memory to the pool it calls back into this graph, so the graph is kept alive and
            # the routing is ended.
            self._failed = graph
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            raise


class EagerReplay:
    """Replays by running the function again, for tests and dry runs without a GPU.

    Values that the function reads from anywhere but its input tensors stay what they were at capture, as in a CUDA graph.
    """

    def capture(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """See `GraphRecorder`."""
        outputs = run()

        def replay() -> None:
            for name, tensor in run().items():
                outputs[name].copy_(tensor)

        return outputs, replay


@contextmanager
def aliased_parameters(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """Temporarily replaces parameters by fresh Parameters that alias the same storage; yields the originals by alias.

    AccumulateGrad of a parameter runs on the stream on which autograd first used the parameter, and would draw that stream
    into the capture. The AccumulateGrad of a fresh Parameter is created on the capture stream.
    """
    aliases: dict[Tensor, nn.Parameter] = {}
    places = [(module, name) for module in model.modules() for name in module._parameters]
    originals = [module._parameters[name] for module, name in places]
    try:
        for (module, name), weight in zip(places, originals, strict=True):
            if weight is not None:
                if weight not in aliases:
                    aliases[weight] = nn.Parameter(weight.detach(), weight.requires_grad)
                module._parameters[name] = aliases[weight]
        yield {alias: weight for weight, alias in aliases.items()}
    finally:
        for (module, name), weight in zip(places, originals, strict=True):
            module._parameters[name] = weight
