"""Recomputes a part of the forward pass during backward instead of keeping what it saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def activation_checkpoint(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, of which only the tensors among `args` are kept for backward; gradients are bitwise the same.

    Arguments and results may be anything; what is kept of containers are the containers themselves. `fn` must be free of
    randomness and of side effects that must not happen twice. May be nested: then the inner parts of an outer one are kept
    only while the outer one is in backward.

    torch's non-reentrant checkpoint. DeepSpeed's default one fires gradient hooks once per use of a weight, and a weight is
    used in every pass here, which ZeRO 2 and 3 refuse; its non-reentrant one (0.19.8) keeps the inner arguments when it is
    nested, so that the outer one saves nothing, and under ZeRO 3 recomputes to the end of the region, which releases the
    weights of the very module that is in backward. torch's stops at the last tensor that is needed.
    """
    if not torch.is_grad_enabled():
        return fn(*args)
    return checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False)
