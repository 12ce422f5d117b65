"""One training step: count targets over the global batch, run the program forward and backward, step if it is safe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.config.errors import UserError
from sleeptrain.data.batch import IGNORED, Batch
from sleeptrain.data.reader import Reader
from sleeptrain.engine.engine import Engine
from sleeptrain.execute.segments import MicroBatch
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.parallel.process import Process
from sleeptrain.program import Program, Sleep, Window

Forward = Callable[[LanguageModel, Sequence[MicroBatch], Program], list[ProgramOutput]]
"""Runs a program over a group of micro-batches so that gradients flow back from the losses."""


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


def read_step(reader: Reader) -> list[Batch] | UserError:
    """This rank's part of the next step; or why it cannot be read, of which `train_step` tells all ranks."""
    try:
        return reader.next_step()
    except UserError as error:
        return error


def train_step(
    engine: Engine, batches: Sequence[Batch] | UserError, program: Program, sleep: Sleep, windows: Sequence[Window], pad: int,
    forward: Forward, group: int, axes: MeshAxes, lr_multiplier: float,
) -> StepReport:  # fmt: skip
    """Forward and backward of all micro-batches of this rank, `group` of them at a time, then one optimizer step at
    `lr_multiplier` times the full rate.

    The loss is the sum over targets divided by their number in the global batch, whatever the split over ranks and
    micro-batches: targets are counted first. Raises UserError on all ranks where one could not read its part.
    """
    device, model = engine.process.device, cast(LanguageModel, engine.module)
    counts = _sum_over_ranks(_scored(batches, windows).to(device) / axes.model_parallel_size)
    if isinstance(batches, UserError) or counts.isnan().any():
        raise _of_all(engine.process, batches)
    total, pieces = max(1, round(float(counts.sum()))), len(batches)
    sums = torch.zeros(len(windows) + 3, dtype=torch.float64, device=device)
    for first in range(0, pieces, group):
        results = forward(model, [_rows(b, model, sleep, pad, device) for b in batches[first : first + group]], program)
        engine.backward(torch.stack([result.nll.sum() for result in results]).sum() * engine.scale(total))
        for result in results:
            sums += _measures(result, windows, axes)
    taken = engine.step(lr_multiplier)
    *losses, count, residual, squares = _sum_over_ranks(sums).tolist()
    asleep = any(op.of > 1 for ops, _ in program.by_window() for op in ops)
    return StepReport(
        loss=sum(losses) / total,
        loss_by_window=[s / n if n else None for s, n in zip(losses, counts.tolist(), strict=True)],
        targets=total,
        grad_norm=taken.grad_norm if math.isfinite(taken.grad_norm) else None,
        residual=residual / (pieces * axes.data.size) if asleep else None,
        state_norm=(squares / count) ** 0.5,
        skipped=taken.skipped,
    )


def _scored(batches: Sequence[Batch] | UserError, windows: Sequence[Window]) -> Tensor:
    """Targets of each window; not numbers where there is no batch, so that the sum over ranks tells it to all."""
    if isinstance(batches, UserError):
        return torch.full((len(windows),), math.nan, dtype=torch.float64)
    return torch.stack([_by_window((b.targets != IGNORED).float(), windows) for b in batches]).sum(0)


def _of_all(process: Process, mine: Sequence[Batch] | UserError) -> UserError:
    """What any rank has to say, once; rank 0 says it. A collective."""
    said: list[list[str]] = [mine.errors if isinstance(mine, UserError) else []] * process.world
    if process.world > 1:
        dist.all_gather_object(said, said[0])
    return UserError(list(dict.fromkeys(line for lines in said for line in lines)) if process.rank == 0 else [])


def _rows(batch: Batch, model: LanguageModel, sleep: Sleep, pad: int, device: torch.device) -> MicroBatch:
    valid = batch.real(pad)
    batch, state = batch.to(device), model.zero_state(sleep, batch.rows)
    return MicroBatch(batch.tokens, batch.targets, state, None if valid is None else valid.to(device))


def _measures(result: ProgramOutput, windows: Sequence[Window], axes: MeshAxes) -> Tensor:
    """Loss sums by window, rows, mean residual, squared state norm: one vector, so that one copy leaves the device.

    To be summed over all processes: what several of them know alike, each gives its share of. One stage alone knows losses
    (elsewhere they are 0) and residuals; every process has its own part of the state.
    """
    losses = _by_window(result.nll.detach(), windows) / axes.tensor.size
    rows = losses.new_tensor(result.nll.shape[0] / axes.model_parallel_size)
    residual = result.residual.double().mean() if result.residual.numel() else losses.new_zeros(())
    fast = [result.state[leaf.name].detach() for leaf in result.state.spec if leaf.kind == "fast"]
    squares = sum((s.double().square().sum() for s in fast), losses.new_zeros(()))
    return torch.cat([losses, torch.stack([rows, residual / axes.tensor.size, squares])])


def _by_window(values: Tensor, windows: Sequence[Window]) -> Tensor:
    """Sums over rows and tokens of each window of `values` [batch, time], float64."""
    return torch.stack([values[:, w.start : w.stop].sum(dtype=torch.float64) for w in windows])


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
