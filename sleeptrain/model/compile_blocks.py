"""Compilation of the blocks with torch.compile: one graph for forward and one for backward, shared by all blocks of a kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sleeptrain.errors import UserError
from sleeptrain.model.stack import Block, attention_block, deltanet_block

_LOG = logging.getLogger("sleeptrain")
Compute = Callable[..., Any]
"""The function of a block, `deltanet_block` or `attention_block`."""
VARIANTS = 64
"""How often a function may be compiled. A kind of block is, for every combination of shapes, padding, cache, and inputs with gradient."""


def compile_blocks(
    model: nn.Module, backend: Any = "inductor", wrap: Callable[[Compute], Compute] | None = None, *, required: bool = True
) -> None:  # fmt: skip
    """Compile every `Block` of `model` with a backend of torch.compile, when it first runs. All blocks of a kind share the graphs.

    `wrap` is applied to the functions first; it may checkpoint them. A call of a block that cannot be compiled raises UserError, or,
    unless it is `required`, warns and runs the block and all later ones of its kind uncompiled: nothing does so without notice.
    """
    compiled: dict[Any, Any] = {
        each: _compiled_block(each, backend, wrap, required) for each in (deltanet_block, attention_block)
    }
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


def partitioned_eager() -> Any:
    """A backend of torch.compile that divides a graph into forward and backward as TorchInductor does, and runs both uncompiled.

    What is saved for backward is therefore what TorchInductor saves; fake tensors may run through it.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def run_uncompiled(graph: Any, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=run_uncompiled,
        bw_compiler=run_uncompiled,
        inference_compiler=run_uncompiled,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )


def compiled_function(
    function: Callable[..., Any], backend: Any = "inductor", *, dynamic: bool | None = None
) -> Callable[..., Any]:
    """`function` compiled by torch.compile as one graph for each of at most `VARIANTS` combinations of inputs.

    `dynamic`: as in torch.compile. Calls raise what torch raises where a graph cannot be compiled.
    """
    from torch._dynamo import config as dynamo  # 1.5 s
    from torch._functorch import config as functorch

    from sleep_kernels.compilation import signals_blocked

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    # By default backward is compiled where it first runs, in autograd, which the block of signals below does not reach.
    early = functorch.patch(force_non_lazy_backward_lowering=True)
    graphs = dynamo.patch(recompile_limit=VARIANTS)(early(compiled))

    def call(*arguments: Any) -> Any:
        # Any call may compile. Compilers inherit the blocked signals: SIGTERM to all processes of a job would end them.
        with signals_blocked():
            return graphs(*arguments)

    return call


def or_uncompiled(compiled: Callable[..., Any], function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`compiled` until a call cannot be compiled, and `function` from then on; that call warns, and names `what`."""
    from torch._dynamo.exc import TorchDynamoException

    failed = False

    def call(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments)
            except TorchDynamoException as error:
                failed = True
                _LOG.warning(
                    "train.compile = auto: %s runs uncompiled, which may need more memory than was planned, since torch.compile "
                    "cannot compile it (%s)", what, _told(error),
                )  # fmt: skip
        return function(*arguments)

    return call


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _compiled_block(
    function: Compute, backend: Any, wrap: Callable[[Compute], Compute] | None, required: bool
) -> Compute:
    from torch._dynamo.exc import TorchDynamoException

    wrapped = wrap(function) if wrap else function
    graphs = compiled_function(wrapped, backend, dynamic=False)

    def raising(*arguments: Any) -> Any:
        try:
            return graphs(*arguments)
        except TorchDynamoException as error:
            raise UserError(
                f"train.compile = true: torch.compile cannot compile a block ({_told(error)}); train.compile=false trains without"
            ) from error

    kind = "attention" if function is attention_block else "Gated DeltaNet"
    call = raising if required else or_uncompiled(graphs, wrapped, f"every {kind} block")

    def attention(block: Block, h: torch.Tensor, cache: Any, position0: Any, *rest: Any) -> Any:
        # A position in a tensor is an input of the graph; a number would be compiled into it.
        if not isinstance(position0, torch.Tensor):
            position0 = torch.full((), position0, dtype=torch.int64, device=h.device)
        return call(block, h, cache, position0, *rest)

    return attention if function is attention_block else call
