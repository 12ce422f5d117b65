"""DeepSpeed's configuration: derived from the recipe, with the keys of its `deepspeed:` section merged over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from sleeptrain.engine.deepspeed_keys import refused_keys
from sleeptrain.errors import UserError

Precision = Literal["fp32", "bf16"]

RESERVED_KEYS = {
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
"""Keys that cannot be overridden, each with the field of the recipe that decides it."""

LARGEST_BUCKET = 200_000_000
"""Maximum number of elements of a reduction bucket. DeepSpeed allocates the bucket anew every step; its default is 500 M."""


def deepspeed_config(
    model: nn.Module, *, clip: float, precision: Precision, zero: int, micro: int, accumulation: int
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`, before overrides."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    bucket = max(*sizes, min(sum(sizes), LARGEST_BUCKET))
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {
            "stage": zero,
            "reduce_bucket_size": bucket,
            # DeepSpeed requires an even number here.
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


def zero3_gathering(
    model: nn.Module, reused_elements: int, precision: Precision, device_memory: int | None
) -> dict[str, int]:
    """Keys of DeepSpeed's `zero_optimization` that decide which parameters ZeRO 3 keeps gathered.

    The smallest parameters stay gathered for the whole run, up to a hundredth of the model: one message each costs more than
    their memory. The `reused_elements`, which every pass uses, stay gathered from one use to the next if they take at most a
    quarter of `device_memory` bytes (None: no limit); otherwise they are gathered for every use. DeepSpeed searches the
    next use of a parameter within a distance, counted in elements in order of use: a pass that is recomputed before its
    backward puts twice the looped range between two uses.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    total, element_bytes = sum(sizes), 2 if precision == "bf16" else 4
    threshold = max((size for size in sizes if 100 * sum(s for s in sizes if s <= size) <= total), default=0)
    keys = {"stage3_param_persistence_threshold": threshold}
    if reused_elements and (device_memory is None or reused_elements * element_bytes <= device_memory // 4):
        # max_live_parameters bounds prefetching, and counts all parameters that are gathered.
        keys |= {
            "stage3_max_reuse_distance": 2 * reused_elements,
            "stage3_max_live_parameters": 2 * reused_elements + total,
        }
    return keys


def merge_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `overrides` merged over it, key by key at every depth.

    Raises UserError for RESERVED_KEYS and for keys and values that DeepSpeed refuses or does not know.
    """
    if problems := [f"deepspeed.{path}: {why}" for path, why in refused_keys(overrides, RESERVED_KEYS)]:
        raise UserError(problems)
    return _merge(config, overrides)


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        inner = base.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merge(inner, value)
        merged[key] = value
    return merged
