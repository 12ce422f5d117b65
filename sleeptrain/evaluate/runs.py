"""Evaluation of trained runs, on the data of their recipe or on another folder of shards."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sleeptrain.checkpoint import weight_shapes
from sleeptrain.data.batch import Batch
from sleeptrain.data.config import Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.evaluate.measure import Measurement, measure
from sleeptrain.evaluate.seeds import RunResult
from sleeptrain.recipe.load_trained import (
    RunFiles,
    Trained,
    check_fit,
    open_run_files,
    open_trained,
    parameter_shapes,
)
from sleeptrain.recipe.task_files import with_build_command
from sleeptrain.run.folder import is_seed_folder, runs_of_seeds
from sleeptrain.train.log import read_metrics


def evaluate(
    paths: Sequence[str],
    passes: Sequence[int] | None,
    data: str | None,
    rows: int,
    samples: int | None,
    quiet: bool = False,
    fp32: bool = False,
) -> tuple[list[RunResult], Manifest]:
    """Measure every run at every number of passes over its evaluation split.

    paths     run folders, folders of runs with several seeds, or checkpoints
    passes    numbers of passes; None for the number that each run was trained with
    data      folder of shards to read instead of the recipe's
    rows      rows of a batch
    samples   evaluate the first samples of every source only; None for all
    quiet     show no progress bar
    fp32      compute in float32 what was trained in bfloat16

    Returns the results in the order of `paths`, and the manifest of the data. One model is in memory at a time. Raises UserError
    if a run cannot be opened, or if runs were trained on different data and `data` is None.
    """
    paths = [run for path in paths for run in runs_of_seeds(Path(path))]
    opened = [open_run_files(Path(path)) for path in paths]
    splits = [_open_split(files, data, rows, samples) for files in opened]
    for files, batches in zip(opened, splits, strict=True):  # check all runs before the first one is measured
        _check_fit(files, batches.manifest, data)
        if batches.manifest.hash != splits[0].manifest.hash:
            raise UserError(
                f"{files.run} was trained on other data than {opened[0].run}; name one folder for all with --data"
            )
    results: list[RunResult] = []
    for path, batches, name in zip(paths, splits, _names(paths), strict=True):
        results.append(_measured(open_trained(path, as_trained=not fp32), batches, name, passes, quiet))
    return results, splits[0].manifest


def _measured(trained: Trained, batches: Evaluation, name: str, passes: Sequence[int] | None, quiet: bool) -> RunResult:
    """The result of one run. Its model is freed on return."""
    measured = [
        measure(
            trained.model,
            trained.recipe.sleep,
            batches.manifest,
            _track(batches, f"{name} N={n}", quiet),
            n,
            batches.names,
        )
        for n in passes or [trained.recipe.sleep.max_passes]
    ]
    return _result(trained, name, batches.manifest, measured)


def _check_fit(files: RunFiles, manifest: Manifest, data: str | None) -> None:
    """Raise UserError if the weights do not fit the recipe, or the data has another vocabulary or other windows than that of training."""
    config = str(files.run / "config.yaml")
    check_fit(weight_shapes(files.checkpoint), parameter_shapes(files.resolved.value), files.checkpoint, config)
    if manifest.tokenizer["hash"] != files.manifest.tokenizer["hash"] or manifest.windows != files.manifest.windows:
        origin = f"--data {data}" if data else f"the data of {files.run}"
        raise UserError(
            f"{origin}: its vocabulary or windows differ from what {files.run} was trained on; name a folder of the same "
            "task and layout with --data"
        )


def _open_split(files: RunFiles, data: str | None, rows: int, samples: int | None) -> Evaluation:
    """The evaluation split of `data` or, if it is None, of the run's recipe. UserError names the option it comes from."""
    recipe = files.resolved.value
    section = recipe.data
    if data is not None:
        section = dataclasses.replace(section, sources=[Source(data)])
    try:
        return Evaluation(section, micro=rows, samples=samples, window=recipe.sleep.window)
    except UserError as error:
        origin = "--data" if data is not None else f"data.sources ({files.run / 'config.yaml'}; --data names another)"
        raise UserError([f"{origin}: {line}" for line in with_build_command(error)]) from None


def _result(trained: Trained, name: str, manifest: Manifest, measured: list[Measurement]) -> RunResult:
    """The measurements of a run with the tokens and the time of its training."""
    metrics = [row for row in read_metrics(trained.run / "metrics.jsonl") if row["step"] <= trained.step]
    times = [row["seconds"] for row in metrics if isinstance(row.get("seconds"), float)]
    seconds = sum(times) if times and len(times) == trained.step else None  # unknown where a row was lost
    tokens = metrics[-1]["tokens"] if metrics else trained.step * trained.recipe.train.batch * manifest.length
    return RunResult(
        name, str(trained.run), trained.step, tokens, seconds, trained.recipe, trained.manifest.hash, measured
    )


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest suffixes of the paths that distinguish them; runs of several seeds are named by their common folder."""
    folders = [Path(path).resolve() for path in paths]
    parts = [(folder.parent if is_seed_folder(folder) else folder).parts for folder in folders]
    depth = 1
    while depth < 5 and len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _track(batches: Evaluation, name: str, quiet: bool) -> Iterator[Batch]:
    """The batches, with a progress bar if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, description=name, total=len(batches), console=Console(stderr=True), transient=True)
