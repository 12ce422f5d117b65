"""Metrics logging: one JSON object per step in the run folder, a progress bar or progress lines, and W&B."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from sleeptrain.errors import RunFailed
from sleeptrain.train.config import Log
from sleeptrain.train.wandb_run import WandbRun

SHOWN_PADDING = 0.05
"""Share of padding from which a progress line shows it."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object per step, flushed after every write."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Open for appending and drop the rows from `first_step` on, which a resumed run writes again."""
        self._path = path
        self._open(first_step)

    def _open(self, first_step: int) -> None:
        kept = [row for row in read_metrics(self._path) if row["step"] < first_step]
        temporary = self._path.with_suffix(".jsonl.tmp")
        with self._naming_file():
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            temporary.replace(self._path)
            self._file = self._path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        """Append one step. NaN and infinity are written as null, because JSON has neither. Raises RunFailed where there is no room."""
        with self._naming_file():
            try:
                self._file.write(json.dumps(finite(row)) + "\n")
                self._file.flush()
            except OSError:
                with suppress(OSError):
                    self._file.close()  # else it would try to write again
                raise

    @contextmanager
    def _naming_file(self) -> Iterator[None]:
        """Raises RunFailed with the file where it cannot be written."""
        try:
            yield
        except OSError as error:
            raise RunFailed(
                f"{self._path} cannot be written: {error.strerror}; once it can, the same command continues from the last checkpoint"
            ) from None

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which the run makes again."""
        self._file.close()
        self._open(step + 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finite(value: Any) -> Any:
    """JSON values with null for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file. Damaged lines are left out, with a warning unless it is the last one, which a crash truncates."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number < len(lines):
            print(f"warning: {path}, line {number} is damaged and left out", file=sys.stderr)
    return rows


class Progress:
    """A progress bar on a terminal, else a line every `every` steps: loss, gradient norm, throughput and time left."""

    def __init__(self, name: str, first: int, steps: int, every: int, quiet: bool = False) -> None:
        self.name, self.steps, self.every, self.quiet = name, steps, every, quiet
        self._times: deque[float] = deque([perf_counter()], maxlen=20)
        self._bar = self._open(first) if sys.stderr.isatty() and not quiet else None

    def _open(self, first: int) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
        bar.start()
        return bar, bar.add_task(self.name, total=self.steps, completed=first, note="")

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Show the metrics `row` of step `step`."""
        self._times.append(perf_counter())
        norm = "n/a" if row["grad_norm"] is None else f"{row['grad_norm']:.2f}"
        note = f"loss {row['loss']:.4f}  grad {norm}  {row['tokens_per_second']:,.0f} tokens/s"
        if row["padding"] >= SHOWN_PADDING:
            note += f"  padding {row['padding']:.0%}"
        if self._bar:
            self._bar[0].update(self._bar[1], completed=step, note=note)
        elif not self.quiet and (step % self.every == 0 or step == self.steps):
            rate = (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)
            left = rate * (self.steps - step)
            print(f"{self.name}  step {step}/{self.steps}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)
        if "eval_loss" in row and not self.quiet:
            self._print(f"{self.name}  step {step}/{self.steps}  held out: {held_out_note(row)}")

    def _print(self, line: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self._bar:
            self._bar[0].console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop the progress bar and restore the terminal."""
        if self._bar:
            self._bar[0].stop()


def held_out_note(row: dict[str, Any]) -> str:
    """What a row of metrics says of held-out data, in short."""
    if row["eval_loss"] is None:
        return "no targets"
    losses = row.get("eval_loss_by_source", {}).items()
    sources = ", ".join(f"{name}: {loss:.4f}" for name, loss in losses if loss is not None)
    labels = ", ".join(f"{label}: {share:.3f}" for label, share in row["eval_accuracy_by_label"].items())
    by_source, by_label = (f" ({shown})" if shown else "" for shown in (sources, labels))
    return f"loss {row['eval_loss']:.4f}{by_source}  accuracy {row['eval_accuracy']:.3f}{by_label}  {row['eval_seconds']:.1f} s"


class Logs:
    """All logs of a run, written by rank 0 only."""

    def __init__(
        self, log: Log, folder: Path, config: dict[str, Any], first: int, steps: int, rank: int, quiet: bool = False
    ) -> None:
        self._sinks: list[Any] = []
        self._progress: Progress | None = None
        if rank == 0:
            self._sinks = [MetricsFile(folder / "metrics.jsonl", first + 1)]
            if log.wandb.mode != "off":
                self._sinks.append(WandbRun(log, folder, config))
            self._progress = Progress(folder.name, first, steps, log.every, quiet)

    def __enter__(self) -> Logs:
        return self

    def rewind(self, step: int) -> None:
        """Drop what was written of the steps after `step`. W&B keeps its rows, which it cannot take back, beside the new ones."""
        for sink in self._sinks:
            if isinstance(sink, MetricsFile):
                sink.rewind(step)

    def write(self, row: dict[str, Any]) -> None:
        """Write the metrics of one step to all logs."""
        for sink in self._sinks:
            sink.write(row)
        if self._progress:
            self._progress.update(row["step"], row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.close()
        for sink in self._sinks:
            sink.close()
