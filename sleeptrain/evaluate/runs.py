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
from sleeptrain.recipe.load_trained import Trained, open_trained
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
    splits = [_batches(trained, data, rows, samples) for trained in runs]
    for trained, batches in zip(runs, splits, strict=True):  # all of them first: measuring takes a while
        _check_fit(trained, batches.manifest, data)
        if batches.manifest.hash != splits[0].manifest.hash:
            raise UserError(
                f"{trained.run} was trained on other data than {runs[0].run}; name one folder for all with --data"
            )
    entries = []
    for trained, batches, name in zip(runs, splits, _names(paths), strict=True):
        wanted = passes or [trained.recipe.sleep.max_passes]
        found = [
            measure(trained.model, trained.recipe.sleep, batches.manifest, _shown(batches, f"{name} N={n}", quiet), n)
            for n in wanted
        ]
        entries.append(_entry(trained, name, batches.manifest, found))
    return entries, splits[0].manifest


def _check_fit(trained: Trained, there: Manifest, data: str | None) -> None:
    """Raise UserError where data has another vocabulary or layout than a run was trained on."""
    if there.tokenizer["hash"] != trained.manifest.tokenizer["hash"] or there.windows != trained.manifest.windows:
        named = f"--data {data}" if data else f"the data of {trained.run}"
        raise UserError(
            f"{named}: its vocabulary or windows differ from what {trained.run} was trained on; name a folder of the same "
            "task and layout with --data"
        )


def _batches(trained: Trained, data: str | None, rows: int, samples: int | None) -> Evaluation:
    section = trained.recipe.data
    if data is not None:
        section = dataclasses.replace(section, sources=[Source(data)])
    try:
        return Evaluation(section, micro=rows, samples=samples)
    except UserError as error:
        named = "--data" if data is not None else f"data.sources ({trained.run / 'config.yaml'}; --data names another)"
        raise UserError([f"{named}: {line}" for line in error.errors]) from None


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
