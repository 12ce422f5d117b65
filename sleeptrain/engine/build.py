"""Builds the engine of a run, and is it: backward, a step that is safe, what a checkpoint needs; all DeepSpeed is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.config.errors import UserError
from sleeptrain.engine import optimizers
from sleeptrain.engine.config import Optim
from sleeptrain.engine.muon import Muon, matrix_partition
from sleeptrain.engine.patches.zero3_reentry import keep_in_backward
from sleeptrain.engine.patches.zero3_reuse import uses_counted_by_backward
from sleeptrain.engine.settings import Precision, merge_overrides, settings, zero3_gathering
from sleeptrain.parallel.gather import StateGatherer
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.process import Process, init_distributed

TAG = "deepspeed"
"""The subfolder of a checkpoint that DeepSpeed's own files are in."""


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    grad_norm: float
    """2-norm of the whole averaged gradient, before clipping; inf if the step was skipped."""
    skipped: bool
    """A loss or gradient was not finite on some rank: no rank changed a parameter or a moment."""


class Engine:
    """A model with its optimizer, spread over the processes.

    A step is `accumulation` calls of `backward`, then one of `step`. The forward pass is free: call `module`, or any part of
    it, however often. Every rank must use the same parameters.
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        process: Process,
        settings: dict[str, Any],
        precision: Precision,
        parts: StateGatherer | None,
    ) -> None:
        self._deepspeed = deepspeed_engine
        self._parts = parts
        self.process = process
        self.settings = settings
        self.precision: Precision = precision
        self._ready = False
        self._over: Callable[[], None] = lambda: None
        if self.zero == 3:
            keep_in_backward(deepspeed_engine)
            self._over = uses_counted_by_backward(deepspeed_engine)
        self._rules = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]

    @property
    def module(self) -> nn.Module:
        """The model, its parameters in `precision`, on `place.device`."""
        return self._deepspeed.module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer below ZeRO; its parameters are this process's partitions, in fp32."""
        return self._deepspeed.optimizer.optimizer

    @property
    def zero(self) -> int:
        """The ZeRO stage."""
        return int(self._deepspeed.zero_optimization_stage())

    @property
    def data(self) -> int:
        """How many processes share a step's rows."""
        return int(self._deepspeed.dp_world_size)

    @property
    def accumulation(self) -> int:
        """How many calls of `backward` make a step."""
        return int(self._deepspeed.gradient_accumulation_steps())

    def scale(self, targets: int) -> float:
        """What to multiply a micro-batch's sum of losses by, given the number of targets in the whole global batch.

        DeepSpeed averages over data ranks and micro-batches; with this the result is the sum over all targets divided by
        their number, however unevenly they are spread.
        """
        return self.data * self.accumulation / max(targets, 1)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar loss (already multiplied by `scale`). A non-finite loss spoils the step, as it must."""
        engine = self._deepspeed
        # NaN times any gradient is NaN, on this rank and after the reduction on every other: then there is one check, that of
        # the gradient, and it needs no communication of its own.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        if self._ready:
            raise RuntimeError("backward was called more often than `accumulation` says: call step first")
        # DeepSpeed does these two from hooks on the output of its own forward, which is not the one that ran.
        engine.optimizer.clear_backward_seen_flag()
        engine._backward_prologue()
        self._ready = engine.is_gradient_accumulation_boundary()
        engine.backward(loss)
        self._over()
        if not self._ready:
            engine.step()

    def step(self, lr_multiplier: float = 1.0) -> StepResult:
        """Updates the parameters, every learning rate being its full value times `lr_multiplier`; or skips, on all ranks."""
        if not self._ready:
            raise RuntimeError(f"step needs {self.accumulation} calls of backward first")
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_multiplier
        self._deepspeed.step()
        self._ready = False
        skipped = not self._deepspeed.was_step_applied()
        return StepResult(float("inf") if skipped else float(self._deepspeed.get_global_grad_norm()), skipped)

    def save(self, folder: Path) -> None:
        """Writes DeepSpeed's files into `folder`; a collective, between steps."""
        with deepspeed_quiet():
            self._deepspeed.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, at the same layout; a collective. Rates and other settings stay those of this run."""
        with deepspeed_quiet():
            self._deepspeed.load_checkpoint(str(folder), tag=TAG)
        # The file brings back the settings of the run that wrote it, which would silently win over the configuration.
        for group, rule in zip(self.optimizer.param_groups, self._rules, strict=True):
            group.update(rule)
        self._deepspeed.optimizer.clip_grad = self.settings["gradient_clipping"]
        self._deepspeed.optimizer.zero_grad()
        self._deepspeed.micro_steps = 0
        self._ready = False

    def weights(self) -> dict[str, Tensor] | None:
        """All parameters by name, whole, in fp32 on the CPU, on rank 0 (None elsewhere); a collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        keeps = self.process.rank == 0 if self._parts is None else self._parts.is_gatherer
        found = {}
        for name, parameter in self.module.named_parameters():
            if name == optimizers.STAND_IN:
                continue
            whole = safe_get_full_fp32_param(parameter) if parameter.requires_grad else parameter.detach().float()
            whole = whole if self._parts is None else self._parts.whole(name, whole)
            if keeps:
                found[name] = whole.detach().to("cpu", copy=True)
        if self._parts is not None:
            return self._parts.gather(found)
        return found if keeps else None


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for the host's."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def build_engine(
    model: nn.Module,
    optim: Optim,
    *,
    precision: Precision,
    zero: int,
    micro_rows: int,
    accumulation: int,
    overrides: Mapping[str, Any] | None = None,
    mpu: Any = None,
    parts: StateGatherer | None = None,
    looped: int = 0,
) -> Engine:
    """Spreads `model` (fp32; it is changed in place) over the processes, joining them first if that has not been done.

    `micro_rows` are the rows of one `backward` on one process. `mpu` tells DeepSpeed the process groups where the data axis
    is not the only one; `parts` then puts the model together from all its parts. `looped` elements of the parameters are used
    again and again within a backward: ZeRO 3 keeps them in between if a quarter of the device holds them. UserError
    for overrides of what other sections decide, for Muon above ZeRO 2, and for Muon on parts of matrices.
    """
    if optim.name == "muon" and zero > 2:
        raise UserError("optim.name muon needs mesh.zero 1 or 2: ZeRO 3 cuts every matrix, and Muon needs whole ones")
    if optim.name == "muon" and any(getattr(p, "tensor_model_parallel", False) for p in model.parameters()):
        raise UserError(
            "optim.name muon needs mesh.tensor 1: tensor parallelism cuts matrices, and Muon needs whole ones"
        )
    process = init_distributed()
    if mpu is not None:
        optimizers.fill_groups(model, process.device)
    derived = settings(
        model, clip=optim.clip, precision=precision, zero=zero, micro=micro_rows, accumulation=accumulation
    )
    if zero == 3:
        derived["zero_optimization"] |= zero3_gathering(model, looped, precision, device_memory(process.device))
    configuration = merge_overrides(derived, overrides or {})
    made = optimizers.optimizer(model, optim)
    matrices = [p for group in made.param_groups if group["muon"] for p in group["params"]]
    with deepspeed_quiet():
        import deepspeed

        # DeepSpeed writes into the dictionary it is given.
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=made, config=dict(configuration), dist_init_required=False, mpu=mpu
        )
    if isinstance(made, Muon):
        made.attach(matrix_partition(matrices, engine.optimizer.dp_process_group))
    return Engine(engine, process, configuration, precision, parts)
