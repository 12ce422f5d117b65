"""The `hardware:` section of a cluster file: GPUs of a node, their memory and speed, links and price."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sleeptrain.config import Problem
from sleeptrain.sizes import read_size


@dataclass(frozen=True)
class Hardware:
    """GPUs and links of a cluster. The default is a node of eight H100 SXM: figures of NVIDIA's data sheets of H100 and DGX H100."""

    gpus: int = 8
    """GPUs of a node."""
    memory: str = "80GiB"
    """Memory of a GPU."""
    flops: float = 989e12
    """FLOPs a second of a GPU at its peak in bfloat16, without sparsity."""
    share: float = 0.4
    """Share of the peak that a GPU reaches while it computes. 0.38 to 0.43 of the peak is reported for the training of Llama 3
    405B on H100 (arXiv 2407.21783); measure yours."""
    node_bandwidth: float = 450e9
    """Bytes a second that a GPU sends within a node (NVLink: 900 GB/s, both directions together)."""
    network_bandwidth: float = 50e9
    """Bytes a second that a GPU sends to other nodes (one adapter of 400 Gb/s a GPU)."""
    latency: float = 0.0
    """Seconds of a message or an all-reduce beside those of its bytes; measure yours. Data sheets have none."""
    price: float | None = None
    """Price of a GPU-hour, in any currency; null: costs are not printed."""

    def __str__(self) -> str:
        links = (
            f"{self.node_bandwidth / 1e9:.3g} GB/s within a node, {self.network_bandwidth / 1e9:.3g} GB/s between nodes"
        )
        latency = f", {1e6 * self.latency:.3g} us a message" if self.latency else ""
        return (
            f"{self.gpus} GPUs a node, {self.flops:.3g} FLOPs a second at peak, {self.share:.0%} of it while computing; a GPU sends "
            f"{links}{latency}"
        )

    @property
    def speed(self) -> float:
        """FLOPs a second of a GPU while it computes."""
        return self.flops * self.share

    @cached_property
    def bytes(self) -> int:
        """Memory of a GPU in bytes."""
        return read_size(self.memory)

    def bandwidth_of_ring(self, size: int, stride: int) -> float:
        """Bytes a second of one GPU in a ring of `size` processes whose ranks are `stride` apart.

        A ring that stays within a node has the node's links. Where it crosses nodes, each of its GPUs in a node forwards a part of
        what leaves the node through its own adapter: so many adapters carry the ring, as far as the node's links can.
        """
        if size * stride <= self.gpus:
            return self.node_bandwidth
        return min(self.node_bandwidth, max(1, self.gpus // stride) * self.network_bandwidth)

    def bandwidth_of_message(self, size: int, stride: int) -> float:
        """Bytes a second of a message between neighbours of an axis of `size` processes whose ranks are `stride` apart: of the
        slowest pair."""
        return self.node_bandwidth if size * stride <= self.gpus else self.network_bandwidth

    def problems(self) -> list[Problem]:
        """Every invalid value, one problem each."""
        found = [] if self.gpus >= 1 else [Problem("gpus", "must be at least 1 GPU a node")]
        found += [
            Problem(name, f"must be a number of {unit} a second above 0")
            for name, unit in (("flops", "FLOPs"), ("node_bandwidth", "bytes"), ("network_bandwidth", "bytes"))
            if not 0 < getattr(self, name) < float("inf")
        ]
        if not 0 <= self.latency < float("inf"):
            found.append(Problem("latency", "must be the seconds of a message, 0 or more"))
        if not 0 < self.share <= 1:
            found.append(Problem("share", "must be above 0 and at most 1"))
        if self.price is not None and not 0 <= self.price < float("inf"):
            found.append(Problem("price", "must be a price of a GPU-hour, or null"))
        try:
            read_size(self.memory)
        except ValueError as error:
            found.append(Problem("memory", str(error)))
        return found
