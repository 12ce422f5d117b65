"""How calls are timed: on a GPU by replaying CUDA graphs, or dry, once each on a CPU, to see that a benchmark runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
L2_BYTES = 60 << 20  # of an H200; larger than others'


class Gpu:
    """The current CUDA device."""

    device = torch.device("cuda")

    def __init__(self, replays: int) -> None:
        self.replays = replays

    def sets(self, nbytes: int) -> int:
        """How many input sets of `nbytes` to go round, so that none is left in the L2 cache."""
        return max(4, -(-2 * L2_BYTES // nbytes))

    def ceilings(self) -> dict[str, float]:
        """Copy bandwidth in bytes/s and bf16 matmul rate in FLOP/s of this GPU."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        copy, matmul = self.seconds([lambda: target.copy_(source)]), self.seconds([lambda: a @ b])
        return {"copy_bytes_per_s": 2 * source.numel() / copy, "matmul_flop_per_s": 2 * 8192**3 / matmul}

    def seconds(self, calls: Sequence[Call]) -> float:
        """Median time of a call on the device over replays of the calls' CUDA graphs, going round them. All replays are
        handed over before the first is waited for: a device that waits for a launch would count that as the call's."""
        graphs, stream = [], torch.cuda.Stream()
        for call in calls:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                call()
            graphs.append(graph)
        pairs = []
        for index in range(self.replays + len(graphs)):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graphs[index % len(graphs)].replay()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) / 1e3 for start, stop in pairs[len(graphs) :])

    def wall_seconds(self, call: Call, calls: int = 200) -> float:
        """Wall-clock time of one of `calls` calls back to back, launched one by one."""
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    def memory(self, forward: Call, backward: Callable[[Any], Any]) -> dict[str, int]:
        """Bytes that a forward keeps besides its outputs, and the most that exists beyond the inputs until backward ends."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = forward()
        kept = torch.cuda.memory_allocated() - before - sum(t.nbytes for t in outputs)
        backward(outputs)
        return {"kept_bytes": kept, "peak_bytes": torch.cuda.max_memory_allocated() - before}

    def settle(self) -> None:
        """Let a failure that is still on its way show."""
        torch.cuda.synchronize()


class Dry:
    """A CPU, every call once; ceilings and bytes are one."""

    device = torch.device("cpu")

    def sets(self, nbytes: int) -> int:
        return 1

    def ceilings(self) -> dict[str, float]:
        return {"copy_bytes_per_s": 1.0, "matmul_flop_per_s": 1.0}

    def seconds(self, calls: Sequence[Call]) -> float:
        start = time.process_time()
        for call in calls:
            call()
        return time.process_time() - start

    def wall_seconds(self, call: Call, calls: int = 1) -> float:
        return self.seconds([call])

    def memory(self, forward: Call, backward: Callable[[Any], Any]) -> dict[str, int]:
        backward(forward())
        return {"kept_bytes": 1, "peak_bytes": 1}

    def settle(self) -> None:
        pass
