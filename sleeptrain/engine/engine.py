"""The engine: a model and its optimizer over all processes, with gradient accumulation and safe steps; wraps DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.engine.optimizers import PLACEHOLDER
from sleeptrain.engine.patches.zero3_reentry import keep_params_of_reentered_modules
from sleeptrain.engine.patches.zero3_reuse import trace_params_per_backward
from sleeptrain.engine.settings import Precision
from sleeptrain.parallel.gather import StateGatherer
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.process import Process

TAG = "deepspeed"
"""The subfolder of a checkpoint that has DeepSpeed's files."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step."""

    grad_norm: float
    """2-norm of the whole averaged gradient, before clipping; inf if the step was skipped."""
    skipped: bool
    """A loss or gradient was not finite on some rank, so that no rank changed a parameter or an optimizer state."""


class Engine:
    """A model with its optimizer, distributed over the processes.

    A step is `accumulation` calls of `backward`, then one of `step`. The forward pass is the caller's: it may call `module`
    or any submodule, any number of times. Every rank must use the same parameters.
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        process: Process,
        deepspeed_config: dict[str, Any],
        precision: Precision,
        state_gatherer: StateGatherer | None,
    ) -> None:
        self._deepspeed = deepspeed_engine
        self._state_gatherer = state_gatherer
        self.process = process
        self.deepspeed_config = deepspeed_config
        self.precision: Precision = precision
        self._step_is_due = False
        self._after_backward: Callable[[], None] = lambda: None
        if self.zero == 3:
            keep_params_of_reentered_modules(deepspeed_engine)
            self._after_backward = trace_params_per_backward(deepspeed_engine)
        self._group_options = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]

    @property
    def module(self) -> nn.Module:
        """The model, its parameters in `precision`, on `process.device`."""
        return self._deepspeed.module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside ZeRO's; its parameters are this process's fp32 partitions."""
        return self._deepspeed.optimizer.optimizer

    @property
    def zero(self) -> int:
        """The ZeRO stage."""
        return int(self._deepspeed.zero_optimization_stage())

    @property
    def data_parallel_size(self) -> int:
        """Number of processes that share the rows of a step."""
        return int(self._deepspeed.dp_world_size)

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps: calls of `backward` per step."""
        return int(self._deepspeed.gradient_accumulation_steps())

    def scale(self, targets: int) -> float:
        """The factor for a micro-batch's sum of losses, given the number of targets of the global batch.

        DeepSpeed averages over data ranks and micro-batches. With this factor the result is the sum of the losses of all
        targets divided by their number, also if ranks and micro-batches have different numbers of targets.
        """
        return self.data_parallel_size * self.accumulation / max(targets, 1)

    def adjoint_scale(self, targets: int) -> float:
        """The gradient of what `backward` differentiates with respect to the loss of a target: DeepSpeed divides by the number
        of micro-batches before it calls autograd, and by the number of data ranks after it."""
        return self.data_parallel_size / max(targets, 1)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar loss that was multiplied by `scale`. A non-finite loss makes the step skip.

        Raises RuntimeError after `accumulation` calls without a `step`.
        """
        engine = self._deepspeed
        # A non-finite loss becomes NaN, and so do all its gradients, on every rank after the reduction: the check of the
        # gradient alone decides, without communication for the loss.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        if self._step_is_due:
            raise RuntimeError("backward was called more often than `accumulation` says: call step first")
        # DeepSpeed makes these two calls in hooks on the output of its own forward, which the caller does not use.
        engine.optimizer.clear_backward_seen_flag()
        engine._backward_prologue()
        self._step_is_due = engine.is_gradient_accumulation_boundary()
        engine.backward(loss)
        self._after_backward()
        if not self._step_is_due:
            engine.step()

    def step(self, lr_multiplier: float = 1.0) -> StepResult:
        """Update the parameters with every peak learning rate times `lr_multiplier`, or skip the step on all ranks.

        Raises RuntimeError before `accumulation` calls of `backward`.
        """
        if not self._step_is_due:
            raise RuntimeError(f"step needs {self.accumulation} calls of backward first")
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_multiplier
        self._deepspeed.step()
        self._step_is_due = False
        skipped = not self._deepspeed.was_step_applied()
        return StepResult(float("inf") if skipped else float(self._deepspeed.get_global_grad_norm()), skipped)

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's files into `folder`; a collective, between steps."""
        with deepspeed_quiet():
            self._deepspeed.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with the same layout; a collective. Learning rates and other options stay this run's."""
        with deepspeed_quiet():
            self._deepspeed.load_checkpoint(str(folder), tag=TAG)
        # The files restore the options of the run that wrote them, which would silently override the configuration.
        for group, options in zip(self.optimizer.param_groups, self._group_options, strict=True):
            group.update(options)
        self._deepspeed.optimizer.clip_grad = self.deepspeed_config["gradient_clipping"]
        self._deepspeed.optimizer.zero_grad()
        self._deepspeed.micro_steps = 0
        self._step_is_due = False

    def weights(self) -> dict[str, Tensor] | None:
        """All full parameters by name, in fp32 on the CPU, on rank 0 (None on other ranks); a collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        gatherer = self._state_gatherer
        keeps = self.process.rank == 0 if gatherer is None else gatherer.is_gatherer
        state = {}
        for name, parameter in self.module.named_parameters():
            if name == PLACEHOLDER:
                continue
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else parameter.detach().float()
            full = full if gatherer is None else gatherer.full(name, full)
            if keeps:
                state[name] = full.detach().to("cpu", copy=True)
        if gatherer is not None:
            return gatherer.gather_full_state(state)
        return state if keeps else None
