"""Builds the engine: derives DeepSpeed's configuration, makes the optimizer and calls `deepspeed.initialize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sleeptrain.engine.config import Optim
from sleeptrain.engine.engine import Engine
from sleeptrain.engine.muon import Muon, matrix_partition
from sleeptrain.engine.optimizers import make_optimizer
from sleeptrain.engine.patches.empty_norm import allow_empty_norms
from sleeptrain.engine.patches.muon_import import import_muon_uncompiled
from sleeptrain.engine.settings import Precision, deepspeed_config, merge_overrides, zero3_gathering
from sleeptrain.errors import UserError
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.process import init_distributed


@dataclass(frozen=True)
class EngineSpec:
    """What the engine needs besides the model and the `optim:` section, as the caller has resolved it."""

    precision: Precision
    zero: int
    """ZeRO stage."""
    micro_rows: int
    """Rows of one `backward` on one process."""
    accumulation: int
    """Gradient accumulation steps."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """The `deepspeed:` section of the recipe."""
    mpu: Any = None
    """Source of DeepSpeed's process groups; None if data is the only axis above 1."""
    reused_elements: int = 0
    """With ZeRO 3: elements of the parameters that several passes of one backward use. They stay gathered between uses if a
    quarter of the device memory holds them."""


def build_engine(model: nn.Module, optim: Optim, spec: EngineSpec) -> Engine:
    """Distribute `model` (fp32; changed in place) over the processes, and create the process group if there is none.

    Raises UserError for overrides of keys that other sections decide, and for Muon with ZeRO 3 or sharded matrices.
    """
    if optim.name == "muon" and spec.zero > 2:
        raise UserError("optim.name muon needs mesh.zero 1 or 2: ZeRO 3 shards every matrix, and Muon needs full ones")
    if optim.name == "muon" and any(getattr(p, "tensor_model_parallel", False) for p in model.parameters()):
        raise UserError(
            "optim.name muon needs mesh.tensor 1: tensor parallelism shards matrices, and Muon needs full ones"
        )
    process = init_distributed()
    derived = deepspeed_config(
        model, clip=optim.clip, precision=spec.precision, zero=spec.zero,
        micro=spec.micro_rows, accumulation=spec.accumulation,
    )  # fmt: skip
    if spec.zero == 3:
        memory = device_memory(process.device)
        derived["zero_optimization"] |= zero3_gathering(model, spec.reused_elements, spec.precision, memory)
    config = merge_overrides(derived, spec.overrides)
    optimizer = make_optimizer(model, optim)
    matrices = [p for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    with deepspeed_quiet():
        import deepspeed

        import_muon_uncompiled()
        # A copy, since DeepSpeed writes into the dictionary.
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=dict(config), dist_init_required=False, mpu=spec.mpu
        )
    allow_empty_norms(engine.optimizer)
    if isinstance(optimizer, Muon):
        optimizer.set_partition(matrix_partition(matrices, engine.optimizer.dp_process_group))
    return Engine(engine, process, config, spec.precision)


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
