"""Compilation of the blocks with torch.compile: one graph for forward and one for backward, shared by all blocks of a kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sleeptrain.model.stack import Block, attention_block, deltanet_block

VARIANTS = 64
"""How often a kind of block may be compiled: once for every combination of shapes, padding, cache, and inputs with gradient."""


def compile_blocks(model: nn.Module) -> None:
    """Compile every `Block` of `model` with TorchInductor, when it first runs. All blocks of a kind share the graphs.

    Raises what torch.compile raises where a block first runs: with `fullgraph`, nothing runs uncompiled without notice.
    """
    compiled: dict[Any, Any] = {deltanet_block: _compiled(deltanet_block), attention_block: _compiled(attention_block)}
    for block in model.modules():
        if isinstance(block, Block):
            block.compute = compiled[block.compute]


def missing_compiler() -> str | None:
    """Why blocks cannot be compiled for a CPU on this machine; None if they can. TorchInductor calls a C++ compiler there."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and found none (CXX, or g++ on PATH)"
    return None


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    from torch._dynamo import config  # 1.5 s

    graphs = config.patch(recompile_limit=VARIANTS)(torch.compile(function, fullgraph=True, dynamic=False))
    if function is not attention_block:
        return graphs

    def attention(block: Block, h: torch.Tensor, cache: Any, position0: Any, *rest: Any) -> Any:
        # A position in a tensor is an input of the graph; a number would be compiled into it.
        if not isinstance(position0, torch.Tensor):
            position0 = torch.full((), position0, dtype=torch.int64, device=h.device)
        return graphs(block, h, cache, position0, *rest)

    return attention
