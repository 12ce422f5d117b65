"""Measurement of a model over a split at one number of passes: accuracy and loss by label value, residual and retention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sleep_data.task import NO_GROUP
from sleeptrain.data.batch import FILLER, Batch
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.retention import Retention, best_head
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, Window, compile


@dataclass
class Tally:
    """Counts of one label value."""

    tokens: int = 0
    right: int = 0
    """Tokens that are predicted correctly."""
    answers: int = 0
    exact: int = 0
    """Answers whose tokens are all predicted correctly."""
    nll: float = 0.0
    """Sum of the losses of the tokens, in nats."""

    def summary(self) -> dict[str, Any]:
        """Accuracy per token and per answer with 95 % intervals, and the mean loss in nats per token."""
        return {
            "tokens": self.tokens, "accuracy": _share(self.right, self.tokens), "interval": wilson(self.right, self.tokens),
            "answers": self.answers, "exact": _share(self.exact, self.answers), "exact_interval": wilson(self.exact, self.answers),
            "loss": _share(self.nll, self.tokens),
        }  # fmt: skip


@dataclass
class Measurement:
    """Results of one model over a split at one number of passes."""

    passes: int
    samples: int = 0
    nll: float = 0.0
    """Sum of the losses of all targets, in nats."""
    targets: int = 0
    by_value: dict[int, Tally] = field(default_factory=dict)
    residual: float | None = None
    """Mean of ||h_n - h_{n-1}|| / ||h_{n-1}|| over passes after the first."""
    state_norm: float = 0.0
    """Root mean square over rows of the norm of all fast weights after the last window."""
    retention: float | None = None
    """Largest retention of any head of any layer: see `Retention`."""
    retention_by_head: dict[int, list[float]] = field(default_factory=dict)
    """For each layer the retention of each value head."""

    @property
    def loss(self) -> float:
        """Mean loss over all targets, in nats."""
        return self.nll / max(1, self.targets)


@torch.no_grad()
def measure(
    model: LanguageModel, sleep: Sleep, manifest: Manifest, batches: Iterable[Batch], passes: int
) -> Measurement:
    """Run the model over all batches with `passes` passes and count its correct predictions.

    An answer is a run of consecutive positions of one group within one window; it is exact if all its tokens are right.
    """
    program = compile(sleep, manifest.windows, len(model.layers), passes)
    device = next(model.parameters()).device
    measurement, residuals, squares = Measurement(passes), [], 0.0
    with Retention(model, len(manifest.windows)) as retention:
        for batch in batches:
            is_sample = batch.ids != FILLER
            valid = batch.real(manifest.pad)
            on_device = batch.to(device)
            micro_batch = MicroBatch(
                on_device.tokens, on_device.targets, model.zero_state(sleep, batch.rows),
                None if valid is None else valid.to(device),
            )  # fmt: skip
            output = run(model, micro_batch, program, sleep, recompute=retention.recompute(), predict=True)
            assert output.predicted is not None
            _count(measurement, batch, output.predicted.cpu(), output.nll.double().cpu(), manifest.windows)
            measurement.samples += int(is_sample.sum())
            if output.residual.numel():
                residuals.append(float(output.residual.mean()))
            fast = [t for f, t in zip(output.state.spec, output.state.flat(), strict=True) if f.kind == "fast"]
            squares += sum(float(t.cpu()[is_sample].double().square().sum()) for t in fast)
        measurement.retention_by_head = retention.by_head()
    measurement.retention = best_head(measurement.retention_by_head)
    measurement.residual = sum(residuals) / len(residuals) if residuals else None
    measurement.state_norm = math.sqrt(squares / max(1, measurement.samples))
    return measurement


def _count(measurement: Measurement, batch: Batch, predicted: Tensor, nll: Tensor, windows: Sequence[Window]) -> None:
    """Add the losses and the correct predictions of a batch, all tensors [rows, length]."""
    scored = batch.targets != IGNORED
    measurement.nll += float(nll[scored].sum())
    measurement.targets += int(scored.sum())
    right = predicted == batch.targets
    for value in batch.groups.unique().tolist():
        if value == NO_GROUP:
            continue
        tally = measurement.by_value.setdefault(value, Tally())
        of_value = (batch.groups == value) & scored
        tally.tokens += int(of_value.sum())
        tally.right += int((of_value & right).sum())
        tally.nll += float(nll[of_value].sum())
        for window in windows:
            span = slice(window.start, window.stop)
            answers, exact = _count_answers(of_value[:, span], right[:, span])
            tally.answers += answers
            tally.exact += exact


def _count_answers(inside: Tensor, right: Tensor) -> tuple[int, int]:
    """Number of answers, which are runs of true in each row of `inside` [rows, time], and of those that are right throughout."""
    previous = torch.nn.functional.pad(inside[:, :-1], (1, 0))
    starts = inside & ~previous
    number = starts.long().cumsum(1) * inside  # 1, 2, ... within an answer, 0 outside
    count = int(starts.sum())
    answer_ids = torch.arange(inside.shape[0])[:, None] * (inside.shape[1] + 1) + number
    wrong = (inside & ~right).flatten()
    return count, count - int(answer_ids.flatten()[wrong].unique().numel())


def wilson(right: float, count: int) -> tuple[float, float] | None:
    """95 % confidence interval of the share right / count (Wilson 1927); None if the count is 0."""
    if not count:
        return None
    z, p = 1.959964, right / count
    middle, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low, high = (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)
    return min(low, p), max(high, p)  # at shares of 0 and 1 a bound equals the share, except for rounding


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
