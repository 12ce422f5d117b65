"""Kernel launches of one block of `hybrid-1b` in one pass on a GPU, eager and compiled, counted without a GPU.

Eager: operators that are no views. Compiled: kernels that TorchInductor schedules for an sm_90 device, and its calls of libraries.
An operator of ours counts as often as it launches kernels or torch operators, which is counted in Triton's interpreter. Attention
counts as one launch in each direction. `accumulation` is one addition to the gradient of every weight. All blocks are recomputed
once (`train.recompute: block`).

    python -m benchmarks.launches [--out benchmarks/results/launches.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.utils.stateless import _reparametrize_module

from sleeptrain.model.language import LanguageModel
from sleeptrain.model.stack import Block, attention_block, deltanet_block
from sleeptrain.recipe import load_recipe

TOKENS = 2048
OWN, KERNEL = "sleep_kernels::", "a kernel in the interpreter"
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


def is_launch(operator: Any) -> bool:
    """Whether an operator of torch computes something: it neither returns a view or a number nor only allocates."""
    schema = operator._schema
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return not views and not re.search("sym_|empty|::detach$|_local_scalar_dense", schema.name)


def own_launches(block: Block, inputs: Sequence[Tensor]) -> Counter[str]:
    """Launches inside each operator of ours, by its name, in one forward and backward of a block with `inputs`."""
    from triton.runtime.interpreter import GridExecutor

    run, inputs = GridExecutor.__call__, [tensor.requires_grad_() for tensor in inputs]

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(KERNEL):
            return run(*args, **kwargs)

    with mock.patch.object(GridExecutor, "__call__", recorded), torch.profiler.profile() as profile:
        outputs = deltanet_block(block, *inputs, None)
        torch.autograd.grad(outputs, [*inputs, *block.parameters()], [torch.ones_like(output) for output in outputs])
    found: Counter[str] = Counter()
    for event in profile.events():
        above = _names_above(event)
        owner = next((name for name in above if name.startswith(OWN)), None)
        inside = [name for name in above if name == KERNEL or name.startswith("aten::")]
        if owner and not inside and (event.name == KERNEL or _launches(event.name)):
            found[owner] += 1
    return found


def _names_above(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def _launches(name: str) -> bool:
    """Whether an operator of torch launches something, by its name in a profile."""
    if not name.startswith("aten::"):
        return False
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
    return all(is_launch(getattr(packet, overload)) for overload in packet.overloads() if "out" not in overload)


def functions(
    block: Block, inputs: Sequence[Shape]
) -> tuple[Callable[..., Any], Callable[..., Any], list[Shape], list[Shape]]:
    """Forward, and recompute with backward, as functions of inputs, weights and output gradients; the shapes of both."""
    weights = dict(block.named_parameters())

    def forward(*tensors: Tensor) -> Any:
        named = dict(zip(weights, tensors[len(inputs) :], strict=False))
        with _reparametrize_module(block, named):
            if len(inputs) == 1:
                return (attention_block(block, tensors[0], None, 0, TOKENS, None)[0],)
            return deltanet_block(block, *tensors[: len(inputs)], None)

    shapes = [*inputs, *((tuple(w.shape), w.dtype) for w in weights.values())]

    def backward(*tensors: Tensor) -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[: len(shapes)]]
        with torch.enable_grad():
            outputs = forward(*leaves)
        return torch.autograd.grad(outputs, leaves, list(tensors[len(shapes) :]), allow_unused=True)

    return forward, backward, shapes, [*shapes, *inputs]


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


def eager(graph: GraphModule) -> list[str]:
    """The operators of a graph that launch something."""
    targets = [
        node.target for node in graph.graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")
    ]
    return [target._schema.name for target in targets if is_launch(target)]


def compiled(graph: GraphModule, shapes: Sequence[Shape]) -> list[str]:
    """What TorchInductor launches for a graph on an sm_90 device: "triton", or the name of an operator or a library's function."""
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
    nodes = [node for node in lowering.scheduler.nodes if type(node).__name__ != "NopKernelSchedulerNode"]
    names = [_library_name(node.node) if type(node).__name__.startswith("Extern") else "triton" for node in nodes]
    return [name for name in names if name]


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


def _library_name(node: Any) -> str:
    """Empty for a node that only picks one of several outputs."""
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


def launches(names: Sequence[str], own: Counter[str]) -> dict[str, int]:
    """Launches by kind."""
    found: Counter[str] = Counter()
    for name in names:
        kind = "ours" if name.startswith(OWN) else "fused" if name == "triton" else "others"
        found[kind] += own[name] if kind == "ours" else 1
    return {**found, "all": sum(found.values())}


def measure() -> dict[str, Any]:
    """Launches by kind of block, direction and mode."""
    config = load_recipe("hybrid-1b", ["model.layers=GA"]).value.model
    with torch.device("meta"):
        model = LanguageModel(replace(config, vocab=1000), gated=True)
    heads = "model.deltanet={key_heads: 1, value_heads: 1, head_dim: 64}"
    small = load_recipe("hybrid-1b", ["model.layers=G", "model.width=64", "model.mlp.hidden=64", heads])
    block = LanguageModel(replace(small.value.model, vocab=100), gated=True, seed=0).bfloat16().layers[0]
    model, bf16 = model.bfloat16(), torch.bfloat16

    def inputs(c: Any, width: int, tokens: int) -> list[Shape]:
        channels = (2 + c.value_heads // c.key_heads) * c.head_dim
        state, tail = (1, c.value_heads, c.head_dim, c.head_dim), (1, c.conv - 1, c.key_heads, channels)
        return [((1, tokens, width), bf16), (state, torch.float32), (tail, bf16)]

    for each in (block, model.layers[0]):
        each.mixer.backend = "triton"
    own = own_launches(
        block, [torch.randn(shape).to(dtype) for shape, dtype in inputs(small.value.model.deltanet, 64, 128)]
    )
    found: dict[str, Any] = {"inside our operators": {name.removeprefix(OWN): count for name, count in own.items()}}
    for kind, layer in (("gated deltanet", model.layers[0]), ("attention", model.layers[1])):
        entering = inputs(config.deltanet, config.width, TOKENS)
        forward, backward, shapes, all_shapes = functions(layer, entering if kind == "gated deltanet" else entering[:1])
        rows = {}
        for name, function, given in (("forward", forward, shapes), ("recompute and backward", backward, all_shapes)):
            rows[name] = {
                "eager": launches(eager(trace(function, given, False)), own),
                "compiled": launches(compiled(trace(function, given, True), given), own),
            }
        weights = len(list(layer.parameters()))
        totals = {mode: sum(row[mode]["all"] for row in rows.values()) + weights for mode in ("eager", "compiled")}
        found[kind] = rows | {"accumulation": weights, "a pass": totals}
    return found


def main() -> None:
    """Print the counts, or write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts there as JSON")
    out = parser.parse_args().out
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    body = {"command": "python -m benchmarks.launches", "tokens": TOKENS, "versions": versions, "launches": measure()}
    text = re.sub(
        r"\{\s+((?:\"\w+\": \d+,?\s+)+)\}", lambda m: "{" + " ".join(m[1].split()) + "}", json.dumps(body, indent=2)
    )
    if out:
        out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
