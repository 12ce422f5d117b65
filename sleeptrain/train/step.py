"""One training step: count targets over the global batch, run the program forward and backward, step if it is safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.data.batch import Batch
from sleeptrain.engine.build import Engine
from sleeptrain.model.sleep import Result, Retain
from sleeptrain.program import Program, Sleep, Window


@dataclass(frozen=True)
class StepReport:
    """What a step measured, over all ranks. Losses in nats a target."""

    loss: float
    loss_by_window: list[float | None]
    targets: int
    grad_norm: float | None
    residual: float | None
    """Mean of ||h_n - h_{n-1}|| / ||h_{n-1}|| over passes and windows; None where no window slept."""
    state_norm: float
    """Root of the mean over rows of the squared norm of all fast weights at the end."""
    skipped: bool
    """A loss or gradient was not finite on some rank, so no rank stepped."""


def train_step(
    engine: Engine, batches: Sequence[Batch], program: Program, sleep: Sleep, windows: Sequence[Window],
    retain: Retain, learning_rate: float,
) -> StepReport:  # fmt: skip
    """Forward and backward of all micro-batches of this rank, then one optimizer step.

    The loss is the sum over targets divided by their number in the global batch, whatever the split over ranks and
    micro-batches: targets are counted first.
    """
    counts = _sum_over_ranks(torch.stack([_by_window((b.targets != -100).float(), windows) for b in batches]).sum(0))
    total = counts.sum().clamp_min(1)
    sums = torch.zeros(len(windows) + 3, dtype=torch.float64)
    for batch in batches:
        state = engine.model.zero_state(sleep, batch.tokens.shape[0])
        result: Result = engine.module(
            batch.tokens, batch.targets, state, program, sleep, valid=batch.valid, retain=retain
        )
        engine.backward(result.nll.sum() / total.to(result.nll.dtype))
        sums += _measures(result, windows).cpu()
    sums = _sum_over_ranks(sums)
    count = len(batches) * _ranks()
    loss = sums[: len(windows)].sum() / total
    taken = engine.step(learning_rate, veto=not bool(torch.isfinite(loss)))
    residual = float(sums[-2]) / count if any(p.of > 1 for ops, _ in program.by_window() for p in ops) else None
    return StepReport(
        loss=float(loss),
        loss_by_window=[float(s / n) if n else None for s, n in zip(sums[: len(windows)], counts, strict=True)],
        targets=int(total),
        grad_norm=taken.grad_norm,
        residual=residual,
        state_norm=(float(sums[-1]) / float(sums[-3])) ** 0.5,
        skipped=taken.skipped,
    )


def _measures(result: Result, windows: Sequence[Window]) -> Tensor:
    """Loss sums by window, rows, mean residual, squared state norm: one vector, so that one copy leaves the device."""
    fast = sum(
        t.detach().double().square().sum()
        for f, t in zip(result.state.spec, result.state.flat(), strict=True)
        if f.kind == "fast"
    )
    residual = (
        result.residual.double().mean()
        if result.residual.numel()
        else torch.zeros((), dtype=torch.float64, device=result.nll.device)
    )
    rest = [
        torch.as_tensor(float(result.nll.shape[0]), device=residual.device),
        residual,
        torch.as_tensor(fast, device=residual.device),
    ]
    return torch.cat([_by_window(result.nll.detach(), windows), torch.stack([r.double() for r in rest])])


def _by_window(values: Tensor, windows: Sequence[Window]) -> Tensor:
    """Sums over rows and tokens of each window of `values` [batch, time], float64."""
    return torch.stack([values[:, w.start : w.stop].sum(dtype=torch.float64) for w in windows])


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
