"""One training step: count targets over the global batch, run forward and backward, step the optimizer if it is safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sleeptrain.data.batch import IGNORED, Batch, by_source
from sleeptrain.data.reader import Reader
from sleeptrain.engine.engine import Engine
from sleeptrain.errors import UserError
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.model.state import State
from sleeptrain.model.work import work_of_rows
from sleeptrain.parallel.mesh import MeshAxes
from sleeptrain.parallel.process import Process
from sleeptrain.program import Program, Window
from sleeptrain.train.lanes import Lanes
from sleeptrain.train.layout import Layout
from sleeptrain.train.rank_times import RankTimes


class Forward(Protocol):
    """Runs a program over a group of micro-batches so that gradients flow back from the losses.

    With `predict` the outputs have the likeliest tokens instead of gradients.
    """

    def __call__(
        self, model: LanguageModel, group: Sequence[MicroBatch], program: Program, /, *, predict: bool = False
    ) -> list[ProgramOutput]: ...


@dataclass(frozen=True)
class StepContext:
    """What every training step of a run works with."""

    engine: Engine
    forward: Forward
    layout: Layout
    axes: MeshAxes
    pad: int
    """The token id of padding."""
    sources: int = 1
    """Number of sources of the data."""
    times: RankTimes = field(default_factory=RankTimes)
    """Counts the forward half of every step."""
    lanes: Lanes | None = None
    """The state that rows carry from step to step; None where every row begins with an empty state."""

    @property
    def model(self) -> LanguageModel:
        """This process's part of the model."""
        return cast(LanguageModel, self.engine.module)


@dataclass(frozen=True)
class StepReport:
    """What a step measured, over all ranks. Losses in nats per target."""

    loss: float
    loss_by_window: list[float | None]
    loss_by_source: list[float | None]
    """None where a source has no targets in this step."""
    tokens_by_source: list[int]
    """Real tokens of this step."""
    work: Tensor
    """What its passes read: float64 [windows, 2, 3], as `work_of_rows` counts it."""
    targets: int
    grad_norm: float | None
    residual: float | None
    """Mean of ||h_n - h_{n-1}|| / ||h_{n-1}|| over passes and windows; None where no window slept."""
    state_norm: float
    """Root mean square over rows of the norm of all fast weights at the end."""
    state_gradient: list[float]
    """Norm of the gradient of the loss with respect to all fast weights after every window but the last, before clipping."""
    skipped: bool
    """A loss or gradient was not finite on some rank, or the norm was above its limit, so no rank stepped."""


def read_step(reader: Reader) -> list[Batch] | UserError:
    """This rank's micro-batches of the next step, or the error of reading them, which `train_step` raises on all ranks."""
    try:
        return reader.next_step()
    except UserError as error:
        return error


def train_step(
    context: StepContext,
    batches: Sequence[Batch] | UserError,
    program: Program,
    lr_multiplier: float,
    max_norm: float = math.inf,
) -> StepReport:
    """Forward and backward of this rank's micro-batches, one group at a time, then one optimizer step.

    `lr_multiplier` is the share of the full learning rate. A step whose gradient norm is above `max_norm` is skipped; what lanes
    then keep, `Lanes.skip` says. Targets are counted over the global batch first, so that the loss is the sum over targets
    divided by their number, whatever the split over ranks and micro-batches. Raises UserError on all ranks where one rank could not
    read its micro-batches.
    """
    engine, axes, windows = context.engine, context.axes, context.layout.windows
    device, group = engine.process.device, context.layout.batch.group
    counts = sum_over_ranks(_count(batches, context).to(device) / axes.model_parallel_size)
    if isinstance(batches, UserError) or counts.isnan().any():
        raise _gather_errors(engine.process, batches)
    targets, work, source_targets, source_tokens = counts.split(
        [len(windows), 6 * len(windows), context.sources, context.sources]
    )
    total = max(1, round(float(targets.sum())))
    by_sources = context.sources if context.sources > 1 else 0
    measures = torch.zeros(2 * len(windows) + 3 + by_sources, dtype=torch.float64, device=device)
    states = list[State]()
    for first in range(0, len(batches), group):
        micro_batches = [
            to_micro_batch(batch, context, engine.adjoint_scale(total), _initial_state(context, number, batch))
            for number, batch in enumerate(batches[first : first + group], first)
        ]
        with context.times.forward():
            outputs = context.forward(context.model, micro_batches, program)
        engine.backward(torch.stack([output.nll.sum() for output in outputs]).sum() * engine.scale(total))
        for batch, output in zip(batches[first : first + group], outputs, strict=True):
            measures += _measure(output, batch, context)
        states += [output.state for output in outputs] if context.lanes else []
    result = engine.step(lr_multiplier, max_norm)
    if context.lanes:
        context.lanes.skip(batches) if result.skipped else context.lanes.keep(states)
    rows, residual, changes, squares, *more = sum_over_ranks(measures).tolist()
    losses, adjoint = more[: len(windows)], more[len(windows) : 2 * len(windows) - 1]
    source_losses = more[2 * len(windows) - 1 :] or [sum(losses)]
    return StepReport(
        loss=sum(losses) / total,
        loss_by_window=_means(losses, targets),
        loss_by_source=_means(source_losses, source_targets),
        tokens_by_source=source_tokens.round().long().tolist(),
        work=work.reshape(-1, 2, 3).cpu(),
        targets=total,
        grad_norm=result.grad_norm if math.isfinite(result.grad_norm) else None,
        residual=residual / changes if changes else None,
        state_norm=(squares / rows) ** 0.5,
        state_gradient=[square**0.5 / axes.data.size for square in adjoint],
        skipped=result.skipped,
    )


def _means(losses: Sequence[float], counts: Tensor) -> list[float | None]:
    """Losses by target; None where there are no targets."""
    return [loss / n if n else None for loss, n in zip(losses, counts.tolist(), strict=True)]


def _count(batches: Sequence[Batch] | UserError, context: StepContext) -> Tensor:
    """Targets of each window, work on each window, targets of each source and real tokens of each source, float64.

    NaN where there is no batch: the sum over ranks carries it to all of them.
    """
    windows, sources = context.layout.windows, context.sources
    if isinstance(batches, UserError):
        return torch.full((7 * len(windows) + 2 * sources,), math.nan, dtype=torch.float64)
    job, counts = context.layout.job, []
    for batch in batches:
        scored, real = batch.targets != IGNORED, batch.tokens != context.pad
        by_row = torch.stack([scored.sum(1), real.sum(1)], 1)
        work = work_of_rows(real, batch.starts, windows, job.sleep, job.model.reaches)
        by_sources = by_source(by_row, batch.sources, sources).T
        counts.append(torch.cat([by_window(scored, windows), work.flatten(), by_sources.flatten()]))
    return torch.stack(counts).sum(0)


def _gather_errors(process: Process, batches: Sequence[Batch] | UserError) -> UserError:
    """The errors of all ranks, each once, for rank 0 to print; an error without text on other ranks. A collective."""
    mine = batches.errors if isinstance(batches, UserError) else []
    gathered: list[list[str]] = [mine] * process.world
    if process.world > 1:
        dist.all_gather_object(gathered, mine)
    return UserError(list(dict.fromkeys(line for lines in gathered for line in lines)) if process.rank == 0 else [])


def _initial_state(context: StepContext, number: int, batch: Batch) -> State | None:
    """The state with which micro-batch `number` of a step begins; None where it is empty."""
    return None if context.lanes is None else context.lanes.begin(number, batch)


def to_micro_batch(batch: Batch, context: StepContext, loss_scale: float, state: State | None = None) -> MicroBatch:
    """A micro-batch on the device, with the state that it starts from; None: the empty one."""
    state = context.model.zero_state(context.layout.job.sleep, batch.rows) if state is None else state
    return batch.micro_batch(state, context.layout.windows, context.pad, loss_scale)


def _measure(output: ProgramOutput, batch: Batch, context: StepContext) -> Tensor:
    """Rows, sum and number of residuals, squared state norm, loss sums by window, squared norms of the gradients of S between
    windows, and where there are several sources loss sums by source: one float64 vector, so that one copy leaves the device.

    The vector is summed over all processes. Where several processes hold the same number, each contributes its share. Losses
    and residuals are known to one pipeline stage (elsewhere they are 0); every process has its own part of the state.
    """
    axes, nll = context.axes, output.nll.detach()
    losses = by_window(nll, context.layout.windows) / axes.tensor.size
    rows = losses.new_tensor(nll.shape[0] / axes.model_parallel_size)
    residuals = output.residual.double() / axes.tensor.size
    present = ~residuals.isnan()
    residual, changes = residuals.nan_to_num().sum(), present.double().sum() / axes.tensor.size
    fast = [output.state[leaf.name].detach() for leaf in output.state.spec if leaf.kind == "fast"]
    squares = sum((s.double().square().sum() for s in fast), losses.new_zeros(()))
    adjoint = output.adjoint.squares(losses.device)
    parts = [torch.stack([rows, residual, changes, squares]), losses, adjoint]
    if batch.sources is not None:
        sources = batch.sources.to(nll.device, non_blocking=True)
        parts.append(by_source(nll.sum(1, dtype=torch.float64), sources, context.sources) / axes.tensor.size)
    return torch.cat(parts)


def by_window(values: Tensor, windows: Sequence[Window]) -> Tensor:
    """Sums over rows and tokens of each window of `values` [batch, time], float64."""
    return torch.stack([values[:, w.start : w.stop].sum(dtype=torch.float64) for w in windows])


def sum_over_ranks(values: Tensor) -> Tensor:
    """All-reduce a tensor in place over all ranks of the run."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
