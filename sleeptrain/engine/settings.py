"""DeepSpeed's configuration, derived from ours; users never write one, and may still override its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from sleeptrain.config.errors import UserError
from sleeptrain.engine.deepspeed_keys import refused_keys

Precision = Literal["fp32", "bf16"]

OURS = {
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "gradient_clipping": "optim.clip",
    "train_batch_size": "train.batch",
    "train_micro_batch_size_per_gpu": "train.micro",
    "gradient_accumulation_steps": "train.batch and train.micro",
    "zero_optimization.stage": "mesh.zero",
    "bf16.enabled": "train.precision",
    "fp16.enabled": "train.precision",
}
"""Keys that cannot be overridden, since other parts of a run are computed from the field named here."""

LARGEST_BUCKET = 200_000_000
"""Elements reduced in one message, at most. DeepSpeed allocates the whole bucket anew every step, 500 M elements by default."""


def settings(
    model: nn.Module, *, clip: float, precision: Precision, zero: int, micro: int, accumulation: int
) -> dict[str, Any]:
    """What `deepspeed.initialize` is given, before overrides."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    bucket = max(*sizes, min(sum(sizes), LARGEST_BUCKET))
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        # DeepSpeed wants an even number here.
        "zero_optimization": {
            "stage": zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket + bucket % 2,
        },
        # Without the check ZeRO 2 steps with non-finite gradients in bf16.
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def zero3_gathering(model: nn.Module, looped: int, precision: Precision, memory: int | None) -> dict[str, int]:
    """Which parameters ZeRO 3 keeps whole: keys of DeepSpeed's `zero_optimization`.

    The smallest ones for good, up to a hundredth of the model: a message each costs more than they do. And from one use to
    the next the `looped` elements that every pass uses, if they take at most a quarter of a device of `memory` bytes (None:
    of any size); otherwise they travel as often as they are used. DeepSpeed looks ahead a number of elements, in the order of
    their use, for another use: a pass that is recomputed before its backward puts twice the looped range between two.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    total, width = sum(sizes), 2 if precision == "bf16" else 4
    small = max((size for size in sizes if 100 * sum(s for s in sizes if s <= size) <= total), default=0)
    keys = {"stage3_param_persistence_threshold": small}
    if looped and (memory is None or looped * width <= memory // 4):
        # The second one bounds how much is fetched ahead, with all that is there counted in.
        keys |= {"stage3_max_reuse_distance": 2 * looped, "stage3_max_live_parameters": 2 * looped + total}
    return keys


def merge_overrides(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the user's `deepspeed:` section over it, key by key at every depth. UserError for keys in
    OURS, and for what DeepSpeed does not know or take."""
    if wrong := [f"deepspeed.{path}: {why}" for path, why in refused_keys(overrides, OURS)]:
        raise UserError(wrong)
    return _merge(base, overrides)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        inner = base.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merge(inner, value)
        result[key] = value
    return result
