"""Activation checkpointing by torch's checkpoint: of plain autograd under every `train.recompute`, and within compiled blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sleeptrain.execute.products import checkpoint_contexts, is_product
from sleeptrain.model.sleep import RecomputeWrappers


def activation_checkpoint(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, saving only the tensors among `args` for backward; gradients are bitwise the same.

    Arguments and results may be any objects; a container is saved with everything in it. `fn` is run again in backward, so
    it must not draw random numbers or have side effects. Calls may be nested: the inputs of inner calls are then saved only
    while backward recomputes the outer one.

    This is torch's non-reentrant checkpoint. DeepSpeed's default one fires gradient hooks once per use of a weight, which
    ZeRO-2 and ZeRO-3 refuse, and every pass uses each weight. DeepSpeed's non-reentrant one (0.19.8) saves the arguments of
    nested calls; under ZeRO-3 it also recomputes to the end of the region, which releases the weights of the module whose
    backward is running. torch's stops at the last tensor that is needed.
    """
    if not torch.is_grad_enabled():
        return fn(*args)
    return checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False)


def selective_checkpoint(fn: Callable[..., Any], *args: Any) -> Any:
    """As `activation_checkpoint`, saving the outputs of matrix products, attention and the delta rule as well."""
    if not torch.is_grad_enabled():
        return fn(*args)
    return checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False, context_fn=checkpoint_contexts)


AUTOGRAD_WRAPPERS: Mapping[str, RecomputeWrappers] = {
    "none": RecomputeWrappers(),
    "selective": RecomputeWrappers(block=selective_checkpoint, head=activation_checkpoint),
    "block": RecomputeWrappers(block=activation_checkpoint, head=activation_checkpoint),
    "pass": RecomputeWrappers(passes=activation_checkpoint, head=activation_checkpoint),
    "window": RecomputeWrappers(window=activation_checkpoint, passes=activation_checkpoint),
}
"""The checkpointed calls of the eager interpreter by `train.recompute`."""


def _save_products(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_product(operator) else CheckpointPolicy.PREFER_RECOMPUTE


def saving_products(block: Callable[..., Any]) -> Callable[..., Any]:
    """A block for torch.compile whose graph saves the outputs of products, attention and the delta rule, and recomputes all else.

    The graph's backward recomputes in its fused kernels, and no forward runs twice.
    """
    contexts = partial(create_selective_checkpoint_contexts, _save_products)
    # It warns, once a graph, of operators that work in place, which blocks do not have.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

    @wraps(block)
    def run(*args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return run


COMPILED_WRAPPERS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]] | None] = {
    "none": None,
    "selective": saving_products,
}
"""What blocks are wrapped in before they are compiled, by `Train.compiled`."""
