"""Evaluation while a model trains: loss by window and source and accuracy by label on held-out data, on all ranks in the training
layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from sleep_data.task import NO_GROUP
from sleeptrain.data.batch import IGNORED, Batch, by_source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.model.sleep import ProgramOutput
from sleeptrain.parallel.collectives import on_every_rank
from sleeptrain.parallel.config import BatchLayout
from sleeptrain.train.job import Job
from sleeptrain.train.step import StepContext, by_window, to_micro_batch


def open_held_out(job: Job, batch: BatchLayout, data_rank: int) -> Evaluation | None:
    """The held-out batches of one data-parallel rank, in groups of as many micro-batches as training has; None if there are none.

    Raises UserError where the data has no such split, or none of its samples.
    """
    if job.eval.every == 0:
        return None
    data = Evaluation(
        job.data, micro=batch.micro, rank=data_rank, world=batch.data, samples=job.eval.samples, multiple=batch.group,
        window=job.sleep.window,
    )  # fmt: skip
    if data.samples == 0:
        raise UserError(
            f"the split {job.data.eval_split!r} (data.eval_split), on which eval.every = {job.eval.every} evaluates, has no "
            "samples; build the data with held-out samples, or take eval.every=0"
        )
    return data


def evaluate_held_out(context: StepContext, data: Evaluation, beat: Callable[[], None]) -> dict[str, Any]:
    """Run the model over held-out data with the largest number of passes of the recipe: entries of a row of metrics.

    Losses in nats per target; an accuracy is the share of targets that are the likeliest token. The result is the same in every
    layout, rounding aside. Logits are computed in tiles. `beat` is called before every group of micro-batches.

    A collective over all ranks. Raises UserError on all ranks where one cannot read its batches.
    """
    began, process, layout = perf_counter(), context.engine.process, context.layout
    program, group, counts = layout.program_of_rows_alone(), layout.batch.group, Counts(data.manifest, data.names)
    # Only the last pipeline stage has losses and predictions, and all tensor-parallel ranks have the same.
    counted = context.axes.pipe.rank == context.axes.pipe.size - 1 and context.axes.tensor.rank == 0
    batches = iter(data)
    for _ in range(len(data) // group):
        beat()
        read = on_every_rank(process, lambda: list(islice(batches, group)))
        on_device = [to_micro_batch(batch, context, loss_scale=1.0) for batch in read]
        outputs = context.forward(context.model, on_device, program, predict=True)
        if counted:
            for batch, output in zip(read, outputs, strict=True):
                counts.add(batch, output)
    if process.world > 1:
        counts.sum_over_ranks(process.world)
    return counts.row() | {"eval_seconds": perf_counter() - began}


class Counts:
    """Targets, losses and correct predictions by window, by source and by label value."""

    def __init__(self, manifest: Manifest, names: Sequence[str]) -> None:
        self._manifest, self._names = manifest, names
        self._windows = torch.zeros(len(manifest.windows), 3, dtype=torch.float64)
        """Targets, sum of their losses, and targets that are the likeliest token."""
        self._sources = torch.zeros(len(names), 3, dtype=torch.float64)
        """The same by source."""
        self._labels: dict[int, list[int]] = {}
        """The same without losses, by label value."""

    def add(self, batch: Batch, output: ProgramOutput) -> None:
        """Add the results of a batch; `batch` is on the CPU."""
        assert output.predicted is not None
        scored = batch.targets != IGNORED
        right = (output.predicted.cpu() == batch.targets) & scored
        columns = (scored, output.nll.cpu(), right)
        self._windows += torch.stack([by_window(column, self._manifest.windows) for column in columns], 1)
        by_row = torch.stack([column.sum(1, dtype=torch.float64) for column in columns], 1)
        self._sources += by_source(by_row, batch.sources, len(self._names))
        if self._manifest.label is not None:
            for value in batch.groups[scored].unique().tolist():
                inside = scored & (batch.groups == value)
                before = self._labels.get(value, [0, 0])
                self._labels[value] = [before[0] + int(inside.sum()), before[1] + int((inside & right).sum())]

    def sum_over_ranks(self, world: int) -> None:
        """Add the counts of all ranks, in the order of ranks. A collective."""
        ranks: list[Any] = [None] * world
        dist.all_gather_object(ranks, (self._windows, self._sources, self._labels))
        self._windows = sum((windows for windows, _, _ in ranks), start=torch.zeros(()))
        self._sources = sum((sources for _, sources, _ in ranks), start=torch.zeros(()))
        tables = [labels for _, _, labels in ranks]
        values = sorted({value for labels in tables for value in labels})
        self._labels = {v: [sum(labels.get(v, [0, 0])[i] for labels in tables) for i in range(2)] for v in values}

    def row(self) -> dict[str, Any]:
        """Entries of a row of metrics, by source where there are several; None where there are no targets."""
        targets, nll, right = self._windows.sum(0).tolist()
        row = {
            "eval_loss": nll / targets if targets else None, "eval_accuracy": right / targets if targets else None,
            "eval_loss_by_window": [loss / n if n else None for n, loss, _ in self._windows.tolist()],
            "eval_accuracy_by_label": {str(v): right / n for v, (n, right) in sorted(self._labels.items()) if v != NO_GROUP},
            "eval_targets": round(targets),
        }  # fmt: skip
        if len(self._names) > 1:
            sources = list(zip(self._names, self._sources.tolist(), strict=True))
            row["eval_loss_by_source"] = {name: loss / n if n else None for name, (n, loss, _) in sources}
            row["eval_accuracy_by_source"] = {name: hits / n if n else None for name, (n, _, hits) in sources}
        return row
