"""Measurement of a model over a split at one number of passes: accuracy and loss by label value, loss by source, residual and
retention."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sleep_data.task import NO_GROUP
from sleeptrain.data.batch import FILLER, Batch, by_source
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.intervals import share_interval
from sleeptrain.evaluate.retention import Retention, best_head
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.model.sleep import run
from sleeptrain.program import Sleep, compile


class Tally:
    """Counts of one label value, by problem."""

    COLUMNS = ("tokens", "right", "answers", "exact", "nll")
    """Tokens; those that are predicted correctly; answers; those whose tokens are all correct; losses of the tokens in nats."""

    def __init__(self, by_problem: Mapping[bytes, Sequence[float]] | None = None) -> None:
        """`by_problem`: the counts, in the order of COLUMNS, of each problem by its identity."""
        self._by_problem = {problem: np.array(counts, float) for problem, counts in (by_problem or {}).items()}

    def add(self, problem: bytes, counts: Sequence[float]) -> None:
        """Add the counts of some answers to one problem."""
        self._by_problem.setdefault(problem, np.zeros(len(self.COLUMNS)))
        self._by_problem[problem] += counts

    def items(self) -> Iterable[tuple[bytes, Sequence[float]]]:
        """(identity, counts) of every problem."""
        return [(problem, counts.tolist()) for problem, counts in self._by_problem.items()]

    @property
    def problems(self) -> int:
        """Number of distinct problems."""
        return len(self._by_problem)

    def by_problem(self, column: str) -> list[float]:
        """A column of the counts, one value for each problem."""
        index = self.COLUMNS.index(column)
        return [float(counts[index]) for counts in self._by_problem.values()]

    def total(self, column: str) -> float:
        """The sum of a column of the counts."""
        return sum(self.by_problem(column))

    def share(self, part: str, whole: str) -> float | None:
        """The ratio of the totals of two columns; None where the second is 0."""
        return self.total(part) / self.total(whole) if self.total(whole) else None

    def summary(self) -> dict[str, Any]:
        """Accuracy per token and per answer with 95 % intervals over distinct problems, and the mean loss in nats per token."""
        columns = {name: self.by_problem(name) for name in self.COLUMNS}
        return {
            "problems": self.problems, "tokens": round(self.total("tokens")), "accuracy": self.share("right", "tokens"),
            "interval": share_interval(columns["right"], columns["tokens"]), "answers": round(self.total("answers")),
            "exact": self.share("exact", "answers"),
            "exact_interval": share_interval(columns["exact"], columns["answers"]), "loss": self.share("nll", "tokens"),
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
    """Mean of ||h_n - h_{n-1}|| / ||h_{n-1}|| over samples and their passes after the first, padding left out."""
    state_norm: float = 0.0
    """Root mean square over rows of the norm of all fast weights after the last window."""
    retention: float | None = None
    """Largest retention of any head of any layer: see `Retention`."""
    retention_by_head: dict[int, list[float]] = field(default_factory=dict)
    """For each layer the retention of each value head."""
    by_source: dict[str, list[float]] = field(default_factory=dict)
    """For each of several sources, by name: targets, sum of their losses, and targets that are the likeliest token."""

    @property
    def loss(self) -> float:
        """Mean loss over all targets, in nats."""
        return self.nll / max(1, self.targets)

    def source_loss(self, name: str) -> float | None:
        """Mean loss over the targets of a source, in nats; None where it has none."""
        targets, nll, _ = self.by_source.get(name, [0.0, 0.0, 0.0])
        return nll / targets if targets else None

    def source_accuracy(self, name: str) -> float | None:
        """Share of the targets of a source that are the likeliest token; None where it has none."""
        targets, _, right = self.by_source.get(name, [0.0, 0.0, 0.0])
        return right / targets if targets else None


@torch.no_grad()
def measure(
    model: LanguageModel,
    sleep: Sleep,
    manifest: Manifest,
    batches: Iterable[Batch],
    passes: int,
    names: Sequence[str] = (),
) -> Measurement:
    """Run the model over all batches with `passes` passes and count its correct predictions; `names` are those of the sources.

    An answer is a run of consecutive positions of one group within one window; it is exact if all its tokens are right.
    """
    program = compile(sleep, manifest.windows, len(model.layers), passes)
    measurement, residuals, squares = Measurement(passes), list[float](), 0.0
    with Retention(model, len(manifest.windows)) as retention:
        for batch in batches:
            is_sample = batch.ids != FILLER
            micro_batch = batch.micro_batch(model.zero_state(sleep, batch.rows), manifest.windows, manifest.pad)
            # A document that begins later has nothing to retain of the first window.
            unbroken = is_sample if batch.starts is None else is_sample & ~batch.starts[:, 1:].any(1)
            output = run(model, micro_batch, program, sleep, recompute=retention.recompute(unbroken), predict="tokens")
            assert output.predicted is not None
            _count(measurement, batch, output.predicted.cpu(), output.nll.double().cpu(), manifest)
            if batch.sources is not None:
                _count_sources(measurement, batch, output.predicted.cpu(), output.nll.double().cpu(), names)
            measurement.samples += int(is_sample.sum())
            changes = output.residual.double().cpu()[:, is_sample]
            residuals += changes[~changes.isnan()].tolist()
            fast = [t for f, t in zip(output.state.spec, output.state.flat(), strict=True) if f.kind == "fast"]
            squares += sum(float(t.cpu()[is_sample].double().square().sum()) for t in fast)
        measurement.retention_by_head = retention.by_head()
    measurement.retention = best_head(measurement.retention_by_head)
    measurement.residual = sum(residuals) / len(residuals) if residuals else None
    measurement.state_norm = math.sqrt(squares / max(1, measurement.samples))
    return measurement


def _count(measurement: Measurement, batch: Batch, predicted: Tensor, nll: Tensor, manifest: Manifest) -> None:
    """Add the losses and the correct predictions of a batch, all tensors [rows, length]."""
    scored = batch.targets != IGNORED
    measurement.nll += float(nll[scored].sum())
    measurement.targets += int(scored.sum())
    right = predicted == batch.targets
    values = [value for value in batch.groups.unique().tolist() if value != NO_GROUP]
    for number, window in enumerate(manifest.windows):
        span = slice(window.start, window.stop)
        for value in values:
            inside = ((batch.groups == value) & scored)[:, span]
            answers, exact = _count_answers(inside, right[:, span])
            columns = (inside.sum(1), (inside & right[:, span]).sum(1), answers, exact, (nll[:, span] * inside).sum(1))
            counts = torch.stack([column.double() for column in columns], 1)
            for row in inside.any(1).nonzero()[:, 0].tolist():
                problem = _problem(batch.tokens[row], number, manifest)
                measurement.by_value.setdefault(value, Tally()).add(problem, counts[row].tolist())


def _count_sources(
    measurement: Measurement, batch: Batch, predicted: Tensor, nll: Tensor, names: Sequence[str]
) -> None:
    """Add targets, losses and correct predictions of the sources of a batch; `predicted` and `nll` are [rows, length]."""
    scored = batch.targets != IGNORED
    columns = (scored, nll * scored, (predicted == batch.targets) & scored)
    by_row = torch.stack([column.sum(1, dtype=torch.float64) for column in columns], 1)
    for name, sums in zip(names, by_source(by_row, batch.sources, len(names)).tolist(), strict=True):
        before = measurement.by_source.get(name, [0.0] * len(sums))
        measurement.by_source[name] = [a + b for a, b in zip(before, sums, strict=True)]


def _problem(tokens: Tensor, window: int, manifest: Manifest) -> bytes:
    """The identity of the problem that a window of a sample asks about: the hash of its tokens."""
    shown = manifest.problem_windows(window)
    parts = [tokens[w.start : w.stop] for w in (manifest.windows[i] for i in shown)]
    return hashlib.blake2b(torch.cat(parts).numpy().tobytes(), digest_size=16).digest()


def _count_answers(inside: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the number of answers, which are runs of true in `inside` [rows, time], and of those right throughout."""
    previous = torch.nn.functional.pad(inside[:, :-1], (1, 0))
    starts = inside & ~previous
    number = starts.long().cumsum(1) * inside  # 1, 2, ... within an answer, 0 outside
    wrong = torch.zeros(inside.shape[0], inside.shape[1] + 1).scatter_add(1, number, (inside & ~right).float())
    count = starts.sum(1)
    return count, count - (wrong[:, 1:] > 0).sum(1)
