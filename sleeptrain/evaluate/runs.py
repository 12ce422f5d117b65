"""Evaluate trained runs on the data they were trained for, or on another folder of it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sleeptrain.config import UserError
from sleeptrain.data.batch import Batch
from sleeptrain.data.config import Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.measure import Measured, measure
from sleeptrain.evaluate.report import Entry
from sleeptrain.recipe import Trained, open_trained
from sleeptrain.train.log import read_metrics


def evaluate(
    paths: Sequence[str],
    passes: Sequence[int] | None,
    data: str | None,
    rows: int,
    samples: int | None,
    quiet: bool = False,
) -> tuple[list[Entry], Manifest]:
    """Measure every run at every number of passes (None: as trained) over its evaluation split.

    Raises UserError where a run cannot be opened, or runs were trained on different tasks.
    """
    runs = [open_trained(path) for path in paths]
    names = _names(paths)
    entries, manifest = [], None
    for trained, name in zip(runs, names, strict=True):
        batches = _batches(trained, data, rows, samples)
        there = batches.manifest
        if there.tokenizer["hash"] != trained.manifest.tokenizer["hash"] or there.windows != trained.manifest.windows:
            raise UserError(
                f"{data} does not fit {trained.run}: its vocabulary or windows differ from what was trained on"
            )
        if manifest is not None and there.hash != manifest.hash:
            raise UserError(
                f"{trained.run} was trained on other data than {runs[0].run}; name one folder for all with --data"
            )
        manifest = there
        wanted = passes or [trained.recipe.sleep.max_passes]
        found = [
            measure(trained.model, trained.recipe.sleep, there, _shown(batches, f"{name} N={n}", quiet), n)
            for n in wanted
        ]
        entries.append(_entry(trained, name, there, found))
    assert manifest is not None
    return entries, manifest


def _batches(trained: Trained, data: str | None, rows: int, samples: int | None) -> Evaluation:
    section = trained.recipe.data
    if data is not None:
        section = dataclasses.replace(section, sources=[Source(data)])
    return Evaluation(section, micro=rows, samples=samples)


def _entry(trained: Trained, name: str, manifest: Manifest, found: list[Measured]) -> Entry:
    metrics = [row for row in read_metrics(trained.run / "metrics.jsonl") if row["step"] <= trained.step]
    seconds = sum(row["seconds"] for row in metrics) if metrics else None
    tokens = trained.step * trained.recipe.train.batch * manifest.length
    return Entry(name, str(trained.run), trained.step, tokens, seconds, trained.recipe.sleep.max_passes, found)


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    parts = [Path(p).resolve().parts for p in paths]
    depth = 1
    while depth < 5 and len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _shown(batches: Evaluation, name: str, quiet: bool) -> Iterator[Batch]:
    """The batches, with a progress bar where there is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, description=name, total=len(batches), console=Console(stderr=True), transient=True)
