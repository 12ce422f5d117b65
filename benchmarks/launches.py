"""Kernel launches of one block of `hybrid-1b` in one pass on a GPU, eager and compiled, counted without a GPU.

Eager: operators that are no views. Compiled: kernels that TorchInductor schedules for an sm_90 device, and its calls of libraries.
An operator of ours counts as often as it launches kernels or torch operators, which is counted in Triton's interpreter. Attention
counts as one launch in each direction. `accumulation` adds the bf16 gradients of all weights to float32 sums. Blocks are recomputed
once (`train.recompute: block`), or but for their products (`selective`). The mean is over the blocks of `hybrid-1b`. With CUDA graphs
the host launches replays for a pass of all blocks, and a few operators beside them (graph_launches.py).

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
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmarks import graph_launches
from benchmarks.graph_launches import is_launch
from benchmarks.inductor_schedule import ScheduledLaunch, Shape, compiled, trace
from sleeptrain.execute.products import record, replay
from sleeptrain.model.config import DeltaNetConfig
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.stack import Block, attention_block, deltanet_block
from sleeptrain.model.token_mask import NO_MASK
from sleeptrain.recipe import load_recipe

TOKENS = 2048
OWN, KERNEL = "sleep_kernels::", "a kernel in the interpreter"


def own_launches(block: Block, inputs: Sequence[Tensor]) -> Counter[str]:
    """Launches inside each operator of ours, by its name, in one forward and backward of a block with `inputs`."""
    from triton.runtime.interpreter import GridExecutor

    run, inputs = GridExecutor.__call__, [tensor.requires_grad_() for tensor in inputs]

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(KERNEL):
            return run(*args, **kwargs)

    with mock.patch.object(GridExecutor, "__call__", recorded), torch.profiler.profile() as profile:
        outputs = deltanet_block(block, *inputs, NO_MASK, block.joint_weights())
        torch.autograd.grad(outputs, [*inputs, *block.parameters()], [torch.ones_like(output) for output in outputs])
    found: Counter[str] = Counter()
    for event in profile.events():
        above = _names_above(event)
        owner = next((name for name in above if name.startswith(OWN)), None)
        inside = [name for name in above if name == KERNEL or _launches(name)]
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
    """Forward, and recompute with backward, as functions of inputs, weights and output gradients; the shapes of both.

    Weights that lie side by side are one input."""
    joint, spec = tree_flatten(block.joint_weights())
    within = [layer for layers in (*block.mixer.joint_layers, block.mlp.joint_layers) for layer in layers]
    weights = {n: w for n, w in block.named_parameters() if all(w is not layer.weight for layer in within)}

    def forward(*tensors: Tensor) -> Any:
        own = tensors[len(inputs) :]
        together = tree_unflatten(own[: len(joint)], spec)
        with _reparametrize_module(block, dict(zip(weights, own[len(joint) :], strict=False))):
            if len(inputs) == 1:
                return (attention_block(block, tensors[0], None, 0, TOKENS, NO_MASK, together)[0],)
            return deltanet_block(block, *tensors[: len(inputs)], NO_MASK, together)

    shapes = [*inputs, *((tuple(w.shape), w.dtype) for w in (*joint, *weights.values()))]

    def backward(*tensors: Tensor, forward: Callable[..., Any] = forward) -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[: len(shapes)]]
        with torch.enable_grad():
            outputs = forward(*leaves)
        return torch.autograd.grad(outputs, leaves, list(tensors[len(shapes) :]), allow_unused=True)

    return forward, backward, shapes, [*shapes, *inputs]


def from_products(
    forward: Callable[..., Any], backward: Callable[..., Any], shapes: Sequence[Shape], all_shapes: Sequence[Shape]
) -> tuple[Callable[..., Any], list[Shape]]:
    """`backward` under selective recompute, with the products of `forward` as further inputs in place of computing them again."""
    with FakeTensorMode(), torch.enable_grad():
        leaves = [torch.empty(shape, dtype=dtype).requires_grad_() for shape, dtype in shapes]
        values, spec = tree_flatten(record(lambda: forward(*leaves))[1])
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]

    def selective(*tensors: Tensor) -> Any:
        known = list(values)
        for place, tensor in zip(places, tensors[len(all_shapes) :], strict=True):
            known[place] = tensor
        products = tree_unflatten(known, spec)
        return backward(*tensors[: len(all_shapes)], forward=lambda *leaves: replay(lambda: forward(*leaves), products))

    return selective, [*all_shapes, *((tuple(values[place].shape), values[place].dtype) for place in places)]


def accumulated_launches(weights: Sequence[tuple[int, ...]]) -> list[ScheduledLaunch]:
    """What a compiled sum of bf16 gradients of weights of these shapes into float32 sums launches."""

    def run(*tensors: Tensor) -> tuple[()]:
        totals, gradients = tensors[: len(weights)], tensors[len(weights) :]
        # As torch.compile functionalises torch._foreach_add_.
        for total, new in zip(totals, torch._foreach_add(totals, gradients), strict=True):
            total.copy_(new)
        return ()

    shapes = [(shape, dtype) for dtype in (torch.float32, torch.bfloat16) for shape in weights]
    return compiled(trace(run, shapes, True), shapes)


def accumulated(weights: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Launches that add bf16 gradients of weights of these shapes to float32 sums."""
    return {"eager": len(weights), "compiled": len(accumulated_launches(weights))}


def block_inputs(c: DeltaNetConfig, width: int, tokens: int) -> list[Shape]:
    """Features, fast weights and convolution tail of a Gated DeltaNet block and one row; attention takes the first alone."""
    channels = (2 + c.value_heads // c.key_heads) * c.head_dim
    state, tail = (1, c.value_heads, c.head_dim, c.head_dim), (1, c.conv - 1, c.key_heads, channels)
    return [((1, tokens, width), torch.bfloat16), (state, torch.float32), (tail, torch.bfloat16)]


def eager(graph: GraphModule) -> list[str]:
    """The operators of a graph that launch something."""
    targets = [
        node.target for node in graph.graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")
    ]
    return [target._schema.name for target in targets if is_launch(target)]


def names(scheduled: Sequence[ScheduledLaunch]) -> list[str]:
    """The names of launches."""
    return [launch.name for launch in scheduled]


def launches(called: Sequence[str], own: Counter[str]) -> dict[str, int]:
    """Launches by kind."""
    found: Counter[str] = Counter()
    for name in called:
        kind = "ours" if name.startswith(OWN) else "fused" if name == "triton" else "others"
        found[kind] += own[name] if kind == "ours" else 1
    return {**found, "all": sum(found.values())}


def measure() -> dict[str, Any]:
    """Launches by kind of block, direction and mode."""
    pattern = load_recipe("hybrid-1b", []).value.model.pattern
    config = load_recipe("hybrid-1b", ["model.layers=GA"]).value.model
    with torch.device("meta"):
        model = LanguageModel(replace(config, vocab=1000), gated=True)
    heads = "model.deltanet={key_heads: 1, value_heads: 1, head_dim: 64}"
    small = load_recipe("hybrid-1b", ["model.layers=G", "model.width=64", "model.mlp.hidden=64", heads])
    block = LanguageModel(replace(small.value.model, vocab=100), gated=True, seed=0).bfloat16().layers[0]
    model = model.bfloat16()
    for each in (block, model.layers[0]):
        each.mixer.backend = "triton"
    entering = block_inputs(small.value.model.deltanet, 64, 128)
    own = own_launches(block, [torch.randn(shape).to(dtype) for shape, dtype in entering])
    found: dict[str, Any] = {"inside our operators": {name.removeprefix(OWN): count for name, count in own.items()}}
    for kind, layer in (("gated deltanet", model.layers[0]), ("attention", model.layers[1])):
        entering = block_inputs(config.deltanet, config.width, TOKENS)
        forward, backward, shapes, all_shapes = functions(layer, entering if kind == "gated deltanet" else entering[:1])
        rows = {}
        for name, function, given in (("forward", forward, shapes), ("recompute and backward", backward, all_shapes)):
            rows[name] = {
                "eager": launches(eager(trace(function, given, False)), own),
                "compiled": launches(names(compiled(trace(function, given, True), given)), own),
            }
        selective, given = from_products(forward, backward, shapes, all_shapes)
        after = launches(names(compiled(trace(selective, given, True), given)), own)
        added = accumulated([tuple(weight.shape) for weight in layer.parameters()])
        totals = {mode: sum(row[mode]["all"] for row in rows.values()) + added[mode] for mode in added}
        totals["compiled, selective"] = rows["forward"]["compiled"]["all"] + after["all"] + added["compiled"]
        found[kind] = rows | {"backward": {"compiled, selective": after}, "accumulation": added, "a pass": totals}
    kinds = ["attention" if letter == "A" else "gated deltanet" for letter in pattern]
    found["mean"] = {
        mode: round(sum(found[kind]["a pass"][mode] for kind in kinds) / len(kinds))
        for mode in found[kinds[0]]["a pass"]
    }
    return found | {"cuda graphs": graph_launches.measure()}


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
