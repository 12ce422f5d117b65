"""The engine: a model and its optimizer over all processes, with gradient accumulation and safe steps; wraps DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sleeptrain.engine.grad_buffers import grad_buffers, mark_as_filled
from sleeptrain.engine.patches.norm_limit import norm_limit
from sleeptrain.engine.patches.zero3_reentry import keep_params_of_reentered_modules
from sleeptrain.engine.patches.zero3_reuse import trace_params_per_backward
from sleeptrain.engine.patches.zero3_unused import clear_unused_gradients
from sleeptrain.engine.settings import Precision
from sleeptrain.engine.state import (
    StateSlice,
    optimizer_step,
    publish_master_weights,
    set_optimizer_step,
    state_slices,
)
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet
from sleeptrain.parallel.process import Process


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step."""

    grad_norm: float
    """2-norm of the whole averaged gradient, before clipping; inf if it is not finite."""
    skipped: bool
    """A loss or gradient was not finite on some rank, or the norm was above its limit: no rank changed a parameter or an optimizer
    state."""


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
    ) -> None:
        self._deepspeed = deepspeed_engine
        self.process = process
        self.deepspeed_config = deepspeed_config
        self.precision: Precision = precision
        self.grad_buffers = grad_buffers(deepspeed_engine.optimizer)
        """By parameter, the float32 tensor that a backward adds its gradient to instead of returning it; only in bf16 at ZeRO 1. A
        backward that is not part of a step is followed by `drop_gradients`."""
        self._step_is_due = False
        self._before_backward: Callable[[], None] = lambda: None
        self._after_backward: Callable[[], None] = lambda: None
        if self.zero == 3:
            keep_params_of_reentered_modules(deepspeed_engine)
            self._before_backward = clear_unused_gradients(deepspeed_engine)
            self._after_backward = trace_params_per_backward(deepspeed_engine)

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
        self._before_backward()
        engine.backward(loss)
        mark_as_filled(engine.optimizer)
        self._after_backward()
        if not self._step_is_due:
            engine.step()

    def step(self, lr_multiplier: float = 1.0, max_norm: float = math.inf) -> StepResult:
        """Update the parameters with every peak learning rate times `lr_multiplier`, or skip the step on all ranks.

        It is skipped where a loss or gradient is not finite, and where the norm of the gradient is above `max_norm` on some rank.
        Raises RuntimeError before `accumulation` calls of `backward`.
        """
        if not self._step_is_due:
            raise RuntimeError(f"step needs {self.accumulation} calls of backward first")
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_multiplier
        with norm_limit(max_norm, self.process) as norms:
            self._deepspeed.step()
        self._step_is_due = False
        skipped = not self._deepspeed.was_step_applied()
        norm = norms[-1] if norms else math.inf
        return StepResult(norm if skipped else float(self._deepspeed.get_global_grad_norm()), skipped)

    def close(self) -> None:
        """Let go of model and optimizer, whose memory is free once nobody refers to them; the engine cannot be used any more.

        Hooks of DeepSpeed (0.19.8) keep them alive for ever otherwise, also for Python's garbage collector. Under ZeRO 3 they stay.
        """
        with deepspeed_quiet():
            self._deepspeed.destroy()

    def drop_gradients(self) -> None:
        """Forget what backward has accumulated since the last step."""
        self._deepspeed.optimizer.zero_grad()

    def state_slices(self, *, owned: bool = False) -> list[StateSlice]:
        """Master weights, frozen weights and moments that this process keeps, as views, between steps.

        `owned`: of frozen weights, which all data-parallel processes keep, this process's share."""
        return state_slices(self.module, self._deepspeed.optimizer, owned=owned)

    @property
    def optimizer_step(self) -> int:
        """Number of steps that the optimizer has made; skipped ones do not count."""
        return optimizer_step(self._deepspeed.optimizer)

    def set_optimizer_step(self, step: int) -> None:
        """Give the optimizer its number of steps, and moments unless it has them; call it before state is loaded."""
        set_optimizer_step(self._deepspeed.optimizer, step)

    def use_loaded_state(self) -> None:
        """Continue from master weights and moments that were written into `state_slices`; a collective, between steps."""
        with deepspeed_quiet():
            publish_master_weights(self._deepspeed.optimizer)
        self.drop_gradients()
        self._deepspeed.micro_steps = 0
        self._step_is_due = False
