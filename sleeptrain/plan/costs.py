"""The costs of work, state and messages on one process of the mesh, as `schedule.estimate` takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from sleeptrain.model.config import Model
from sleeptrain.model.counts import head_backward_flops, head_flops, stack_flops
from sleeptrain.model.state import Leaf, leaves
from sleeptrain.model.token_mask import MaskName
from sleeptrain.parallel.tensor import local_config
from sleeptrain.plan.activations import ActivationMemory, ActivationOptions, measure_activations
from sleeptrain.plan.block_kinds import BlockKind, block_kinds
from sleeptrain.schedule import Costs, ValueSizes
from sleeptrain.train.job import Job
from sleeptrain.train.kernels import DTYPES
from sleeptrain.train.layout import Layout
from sleeptrain.train.trained import trained_weights


def layer_activations(layout: Layout, mask: MaskName | None) -> ActivationMemory:
    """What backward of a block and of the head needs on one process. `mask`: `DataLayout.mask`."""
    job, longest = layout.job, max(w.stop - w.start for w in layout.windows)
    # ZeRO 3 gathers every weight apart, and layers of megatron-core, which compiled blocks do without, are not joined.
    zero3 = job.mesh.zero == 3
    joint = not zero3 and (job.mesh.tensor == 1 or job.train.compiled is not None)
    local, shards = local_config(job.model, job.mesh.tensor), job.mesh.tensor
    assert job.model.vocab is not None and local.vocab is not None
    rows = None if shards == 1 else job.model.vocab - (shards - 1) * local.vocab
    return measure_activations(
        local,
        job.sleep,
        layout.batch.micro,
        longest,
        DTYPES[job.train.precision],
        ActivationOptions(mask, job.train.compiled, job.train.z_loss, trained_weights(job), joint, zero3, rows),
    )


def costs_of(layout: Layout, activations: ActivationMemory | None = None, speed: float | None = None) -> Costs:
    """Costs of work, state and messages on one process.

    Without `activations` saved activations take no memory: enough for FLOPs, seconds and traffic. `speed`: FLOPs a second;
    without it one second is one FLOP.
    """
    job = layout.job
    model, dtype = local_config(job.model, job.mesh.tensor), DTYPES[job.train.precision]
    grad_bytes = torch.promote_types(dtype, torch.float32).itemsize
    tied_across_stages, trained = layout.tied and job.mesh.pipe > 1, trained_weights(job)
    return Costs(
        sizes=_sizes(job, model, layout.batch.micro, activations),
        blocks=stack_flops(model, job.sleep, trained),
        reaches=model.reaches,
        head=head_flops(model),
        head_backward=head_backward_flops(model, trained),
        lowest=trained.first_block,
        tied_bytes=float(grad_bytes * model.width * (model.vocab or 0)) if tied_across_stages else 0.0,
        autograd=job.mesh.zero == 3,
        speed=speed or 1.0,
    )


def _sizes(job: Job, model: Model, micro: int, activations: ActivationMemory | None) -> ValueSizes:
    """Bytes per value on one process. With sequence parallelism the features between layers are divided over the tensor axis."""
    dtype, sharing = DTYPES[job.train.precision], job.mesh.tensor if job.mesh.sequence else 1
    spec, pattern = leaves(model, job.sleep, dtype), model.pattern

    def per_block(kind: str, size: Callable[[Leaf], int]) -> tuple[float, ...]:
        return tuple(
            float(sum(leaf.dtype.itemsize * size(leaf) for leaf in spec if leaf.layer == i and leaf.kind == kind))
            for i in range(len(pattern))
        )

    zeros = (0.0,) * len(pattern)
    sizes = ValueSizes(
        h=model.width * dtype.itemsize / sharing,
        fast=per_block("fast", lambda leaf: math.prod(leaf.shape)),
        conv=per_block("conv", lambda leaf: math.prod(leaf.shape)),
        kv=per_block("kv", lambda leaf: math.prod(leaf.shape[1:])),
        graph=zeros, rows=micro,
    )  # fmt: skip
    if activations is None:
        return sizes
    kinds = block_kinds(job.model, trained_weights(job))
    tokens, blocks = activations.rows * activations.tokens, [activations.blocks[kind] for kind in kinds]
    # Between layers a process keeps its own tokens only: inputs of the two norms of a block, and of the head's norm.
    norm = activations.norm.kept / tokens * (1 - 1 / sharing)
    divided = 2 * norm
    if job.train.compiled:
        # Of its two norms a compiled block saves the float32 scales alone, and of the features behind its mixer those of its own tokens.
        divided = (sizes.h * sharing + 2 * torch.float32.itemsize) * (1 - 1 / sharing)

    def per_cached_token(kind: BlockKind) -> float:
        extra = activations.cached[kind].kept - activations.blocks[kind].kept
        return extra / (activations.rows * max(1, activations.tokens - 1))

    selective, cached = job.train.schedule_policy == "selective", zeros
    if activations.cached:
        cached = tuple(per_cached_token(kind) if kind in activations.cached else 0.0 for kind in kinds)
    return replace(
        sizes,
        graph=tuple((each.beside if selective else each.kept) / tokens - divided for each in blocks),
        products=tuple(each.products / tokens for each in blocks) if selective else (),
        state=() if selective else tuple(each.state / tokens - divided for each in blocks),
        cached=cached,
        head=activations.head.kept / tokens - norm,
    )
