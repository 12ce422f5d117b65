"""What TorchInductor launches for a function on an sm_90 GPU, found without one: it schedules the graph for a pretended device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.fx import GraphModule

Shape = tuple[tuple[int, ...], torch.dtype]
H200 = SimpleNamespace(
    name="H200", type="cuda", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=140 << 30,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10, L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip
"""What TorchInductor asks of a device."""

ATTENTION = torch.library.Library("launches", "DEF")
"""Stands for scaled dot product attention, whose operators on a CPU are others than on a GPU."""
ATTENTION.define("attention(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")
ATTENTION.define(
    "attention_backward(Tensor d, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse) -> (Tensor, Tensor, Tensor)"
)
torch.library.register_fake(
    "launches::attention", lambda q, k, v: (torch.empty_like(q), q.new_empty(q.shape[:-1]).float()), lib=ATTENTION
)
torch.library.register_fake(
    "launches::attention_backward", lambda d, q, k, v, o, lse: tuple(map(torch.empty_like, (q, k, v))), lib=ATTENTION
)


@dataclass(frozen=True)
class ScheduledLaunch:
    """One launch of a scheduled graph."""

    name: str
    """"triton", or the name of an operator or a library's function."""
    bytes: int
    """What it reads and writes: each buffer once, or the slices of it that are read."""
    flops: int
    """Of a matrix product; 0 for others."""


def trace(function: Callable[..., Any], shapes: Sequence[Shape], decompose: bool) -> GraphModule:
    """The graph of a function, without nodes that nothing reads."""
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
        graph = make_fx(function, decomposition_table=select_decomp_table() if decompose else {})(*tensors)
    graph.graph.eliminate_dead_code()
    return graph


def compiled(graph: GraphModule, shapes: Sequence[Shape]) -> list[ScheduledLaunch]:
    """What TorchInductor launches for a graph on an sm_90 device."""
    from torch._dynamo import device_interface
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    class Device(device_interface.CudaInterface):
        get_device_properties = staticmethod(lambda device=None: H200)
        get_compute_capability = staticmethod(lambda device=None: 90)
        current_device = staticmethod(lambda: 0)
        is_triton_capable = is_bf16_supported = staticmethod(lambda *_, **__: True)

    list(device_interface.get_registered_device_interfaces())
    device_interface.register_interface_for_device("cuda", Device)
    _retarget(graph)
    with FakeTensorMode() as mode, _pretended_gpu():
        inputs = [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
        lowering = GraphLowering(graph, example_inputs=inputs, is_inference=True)
        with V.set_fake_mode(mode), V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            lowering._update_scheduler()
            found = [
                ScheduledLaunch(_name(node), _bytes(node), node.estimate_flops() or 0)
                for node in lowering.scheduler.nodes
                if type(node).__name__ != "NopKernelSchedulerNode"
            ]
    return [launch for launch in found if launch.name]


def _pretended_gpu() -> Any:
    return mock.patch.multiple(
        torch.cuda,
        _lazy_init=lambda: None,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_properties=lambda device=None: H200,
        get_device_capability=lambda device=None: (9, 0),
    )


def _bytes(scheduled: Any) -> int:
    """TorchInductor counts a whole buffer where a fused kernel reads a slice of it; here accesses from the same element count once."""
    from torch._inductor.dependencies import MemoryDep
    from torch._inductor.virtualized import V

    sizes = scheduled.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    slices: dict[str, dict[Any, int]] = {name: {} for name in sizes}
    for access in scheduled.read_writes.reads_and_writes():
        if access.name not in sizes:
            continue
        if isinstance(access, MemoryDep) and not access.is_indirect():
            first = access.index.subs(dict.fromkeys(access.var_names, 0))
            moved = int(access.get_numel()) * V.graph.get_dtype(access.name).itemsize
        else:
            first, moved = None, sizes[access.name]
        slices[access.name][first] = max(moved, slices[access.name].get(first, 0))
    return sum(min(size, sum(slices[name].values())) for name, size in sizes.items())


def _name(scheduled: Any) -> str:
    """Empty for a node that only picks one of several outputs."""
    if not type(scheduled).__name__.startswith("Extern"):
        return "triton"
    node = scheduled.node
    overload = getattr(node, "op_overload", None)
    return overload._schema.name if hasattr(overload, "_schema") else getattr(node, "python_kernel_name", None) or ""


def _retarget(graph: GraphModule) -> None:
    """Move a graph that was traced on the CPU to a GPU."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        name = str(node.target)
        if "flash_attention_for_cpu" in name:
            of = torch.ops.launches.attention_backward if "backward" in name else torch.ops.launches.attention
            node.target, node.kwargs = of.default, {}
            node.args = node.args[: 6 if "backward" in name else 3]
    graph.recompile()
