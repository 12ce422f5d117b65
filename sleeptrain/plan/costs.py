"""What work, state and messages of a recipe cost: the `Costs` that `price` takes, for one process of the mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from sleeptrain.model.config import Model
from sleeptrain.model.counts import block_flops, head_flops
from sleeptrain.model.state import Leaf, leaves
from sleeptrain.parallel.tensor import local_config
from sleeptrain.plan.activations import ActivationMemory, SegmentMemory, measure_activations
from sleeptrain.plan.data_layout import DataLayout
from sleeptrain.schedule import RECOMPUTE_POLICIES, Costs, RecomputePolicy, ValueSizes
from sleeptrain.train.job import Job

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Types of parameters and features by `train.precision`."""


def recompute_policy(job: Job) -> RecomputePolicy:
    """What the recipe keeps for backward."""
    return replace(RECOMPUTE_POLICIES[job.train.recompute], offload=job.train.offload)


def activations_of(job: Job, layout: DataLayout, micro: int) -> ActivationMemory:
    """What backward of a block and of the head needs on one process, in micro-batches of `micro` rows."""
    longest = max(w.stop - w.start for w in layout.windows)
    return measure_activations(
        local_config(job.model, job.mesh.tensor), job.sleep, micro, longest, TYPES[job.train.precision], layout.padded
    )


def costs_of(job: Job, micro: int, graphs: ActivationMemory | None = None, speed: float | None = None) -> Costs:
    """Costs on one process, in micro-batches of `micro` rows. The job must be complete.

    Without `graphs` what backward needs costs nothing: enough for FLOPs, seconds and traffic. `speed` are FLOPs a second;
    without it seconds are FLOPs.
    """
    model, pattern, mesh = local_config(job.model, job.mesh.tensor), job.model.pattern, job.mesh
    dtype = TYPES[job.train.precision]
    flops = {letter: block_flops(model, letter) for letter in set(pattern)}
    sums = torch.promote_types(dtype, getattr(torch, job.optim.sum_dtype)).itemsize
    return Costs(
        sizes=_sizes(job, model, dtype, micro, graphs),
        flops=tuple(flops[letter][0] for letter in pattern),
        pairs=tuple(flops[letter][1] for letter in pattern),
        attention_window=model.attention.window,
        head=head_flops(model),
        tied_bytes=float(sums * model.width * (model.vocab or 0)) if job.model.tie and mesh.pipe > 1 else 0.0,
        speed=speed or 1.0,
    )


def _sizes(job: Job, model: Model, dtype: torch.dtype, micro: int, graphs: ActivationMemory | None) -> ValueSizes:
    """Bytes of what one process keeps. Where the tensor processes share the tokens between layers, features are divided."""
    width, among = model.width * dtype.itemsize, job.mesh.tensor if job.mesh.sequence else 1
    spec, pattern = leaves(model, job.sleep, dtype), model.pattern

    def per_block(kind: str, size: Callable[[Leaf], int]) -> tuple[float, ...]:
        return tuple(
            float(sum(f.dtype.itemsize * size(f) for f in spec if f.layer == i and f.kind == kind))
            for i in range(len(pattern))
        )

    zeros = (0.0,) * len(pattern)
    sizes = ValueSizes(
        h=width / among,
        fast=per_block("fast", lambda f: math.prod(f.shape)),
        conv=per_block("conv", lambda f: math.prod(f.shape)),
        kv=per_block("kv", lambda f: math.prod(f.shape[1:])),
        graph=zeros, rows=micro,
    )  # fmt: skip
    if graphs is None:
        return sizes
    tokens = graphs.rows * graphs.tokens
    # Between layers every process keeps its tokens alone: the two norms of a block, or that of the head.
    norm = graphs.norm.kept / tokens * (1 - 1 / among)

    def beyond(full: SegmentMemory) -> float:
        return (full.kept - graphs.blocks["A"].kept) / (graphs.rows * max(1, graphs.tokens - 1))

    cached = zeros if graphs.cached is None else tuple(beyond(graphs.cached) if c == "A" else 0.0 for c in pattern)
    return replace(
        sizes,
        graph=tuple(graphs.blocks[letter].kept / tokens - 2 * norm for letter in pattern),
        cached=cached,
        head=graphs.head.kept / tokens - norm,
    )
