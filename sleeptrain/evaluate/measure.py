"""Accuracy and loss by label value, at one number of passes or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sleeptrain.data.batch import FILLER, IGNORED, NO_GROUP, Batch
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.retention import Retention, best
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, Window, compile


@dataclass
class Tally:
    """Counts of one label value."""

    tokens: int = 0
    right: int = 0
    answers: int = 0
    exact: int = 0
    nll: float = 0.0

    def row(self) -> dict[str, Any]:
        """Shares and their 95 % intervals, losses in nats a token."""
        return {
            "tokens": self.tokens, "accuracy": _share(self.right, self.tokens), "interval": wilson(self.right, self.tokens),
            "answers": self.answers, "exact": _share(self.exact, self.answers), "exact_interval": wilson(self.exact, self.answers),
            "loss": _share(self.nll, self.tokens),
        }  # fmt: skip


@dataclass
class Measured:
    """What one pass over a split measured at one N."""

    passes: int
    samples: int = 0
    nll: float = 0.0
    targets: int = 0
    by_value: dict[int, Tally] = field(default_factory=dict)
    residual: float | None = None
    """Mean of ||h_n - h_{n-1}|| / ||h_{n-1}|| over passes after the first."""
    state_norm: float = 0.0
    """Root mean square over rows of the norm of all fast weights at the end."""
    retention: float | None = None
    """Share of what pass 1 wrote of the first window that decay leaves when the last window begins: best head of any layer."""
    retention_by_head: dict[int, list[float]] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Nats a target, all of them."""
        return self.nll / max(1, self.targets)


@torch.no_grad()
def measure(model: LanguageModel, sleep: Sleep, manifest: Manifest, batches: Iterable[Batch], passes: int) -> Measured:
    """Run every batch once at N = `passes` and tally what it predicts.

    An answer is a run of consecutive positions with a group, within one window; it is exact if all its tokens are right.
    """
    program = compile(sleep, manifest.windows, len(model.layers), passes)
    device = next(model.parameters()).device
    found, residuals, squares = Measured(passes), [], 0.0
    with Retention(model, len(manifest.windows)) as retention:
        for batch in batches:
            rows = batch.ids != FILLER
            valid = batch.real(manifest.pad)
            there = batch.to(device)
            micro_batch = MicroBatch(
                there.tokens, there.targets, model.zero_state(sleep, batch.rows),
                None if valid is None else valid.to(device),
            )  # fmt: skip
            result = run(model, micro_batch, program, sleep, recompute=retention.recompute(), predict=True)
            assert result.predicted is not None
            _tally(found, batch, result.predicted.cpu(), result.nll.double().cpu(), manifest.windows)
            found.samples += int(rows.sum())
            if result.residual.numel():
                residuals.append(float(result.residual.mean()))
            fast = [t for f, t in zip(result.state.spec, result.state.flat(), strict=True) if f.kind == "fast"]
            squares += sum(float(t.cpu()[rows].double().square().sum()) for t in fast)
        found.retention_by_head = retention.by_head()
    found.retention = best(found.retention_by_head)
    found.residual = sum(residuals) / len(residuals) if residuals else None
    found.state_norm = math.sqrt(squares / max(1, found.samples))
    return found


def _tally(found: Measured, batch: Batch, predicted: Tensor, nll: Tensor, windows: Sequence[Window]) -> None:
    scored = batch.targets != IGNORED
    found.nll += float(nll[scored].sum())
    found.targets += int(scored.sum())
    right = predicted == batch.targets
    for value in batch.groups.unique().tolist():
        if value == NO_GROUP:
            continue
        tally = found.by_value.setdefault(value, Tally())
        mine = (batch.groups == value) & scored
        tally.tokens += int(mine.sum())
        tally.right += int((mine & right).sum())
        tally.nll += float(nll[mine].sum())
        for window in windows:
            part = slice(window.start, window.stop)
            answers, exact = _answers(mine[:, part], right[:, part])
            tally.answers += answers
            tally.exact += exact


def _answers(mine: Tensor, right: Tensor) -> tuple[int, int]:
    """How many runs of true in each row of `mine` [rows, time], and how many of them are right throughout."""
    before = torch.nn.functional.pad(mine[:, :-1], (1, 0))
    starts = mine & ~before
    number = starts.long().cumsum(1) * mine  # 1, 2, ... within an answer, 0 outside
    count = int(starts.sum())
    rows = torch.arange(mine.shape[0])[:, None] * (mine.shape[1] + 1) + number
    wrong = (mine & ~right).flatten()
    return count, count - int(rows.flatten()[wrong].unique().numel())


def wilson(right: float, count: int) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927); None where nothing was counted."""
    if not count:
        return None
    z, p = 1.959964, right / count
    middle, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low, high = (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)
    return min(low, p), max(high, p)  # equal to p at 0 and 1, which rounding may miss


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
