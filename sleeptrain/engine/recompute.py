"""Recomputes a part of the forward pass during backward instead of keeping what it saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def recompute(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, of which only the tensors among `args` are kept for backward; gradients are bitwise the same.

    Arguments and results are tensors, or tuples, lists and dicts of them at any depth; arguments may hold other values,
    results not. `fn` must be free of randomness and side effects. May be nested; not under `torch.autograd.grad`.

    Through DeepSpeed's non-reentrant checkpoint: its default one fires gradient hooks once per use of a weight, and a weight
    is used in every pass here, which ZeRO 2 and 3 refuse.
    """
    if not torch.is_grad_enabled():
        return fn(*args)
    from deepspeed.runtime.activation_checkpointing.checkpointing import non_reentrant_checkpoint

    leaves, inputs = pytree.tree_flatten(args)
    outputs: Any = None

    def flat(*values: Any) -> tuple[Any, ...]:
        nonlocal outputs
        results, outputs = pytree.tree_flatten(fn(*pytree.tree_unflatten(values, inputs)))
        return tuple(results)

    made = non_reentrant_checkpoint(flat, *leaves)
    return pytree.tree_unflatten(made if isinstance(made, tuple) else (made,), outputs)
