"""The training loop: next batch, forward, backward, step, log, maybe save, maybe stop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.engine.lr_schedule import lr_multiplier
from sleeptrain.errors import ProcessLost
from sleeptrain.parallel.process import explain_lost_process
from sleeptrain.run.stop import BY_FILE, StopRequest
from sleeptrain.train.go_back import go_back
from sleeptrain.train.growth import can_explode, growth_at_start, looped_blocks
from sleeptrain.train.log import Logs
from sleeptrain.train.metrics import metrics
from sleeptrain.train.process_settings import ScheduledCollection
from sleeptrain.train.profile import profiled
from sleeptrain.train.setup import Setup
from sleeptrain.train.step import read_step, train_step


@dataclass(frozen=True)
class Outcome:
    """How training ended: the step it stands at, and whether it was stopped by request."""

    step: int
    steps: int
    stopped: bool
    by_file: bool = False
    """Whether the stop file has stopped it, rather than a signal."""


Evaluate = Callable[[Callable[[], None]], dict[str, Any]]
"""Measures the model on held-out data: entries of a row of metrics, among them `eval_loss`. A collective, which calls its
argument before every group of micro-batches."""
LAST_SAVE = 60.0
"""Seconds that a save may still take once another process is lost. That of the lost process may be missing for ever."""


def train(setup: Setup, quiet: bool = False, evaluate: Evaluate | None = None) -> Outcome:
    """Train from the step where the run stands to its last step, or until it is asked to stop; save at the end.

    `evaluate` is called every `eval.every` steps and after the last one. Raises RunFailed, on all ranks, when losses or
    gradients stay non-finite.
    """
    eval_loss = None
    step, steps, guard = setup.step, setup.layout.steps, setup.guard
    saved = step or None
    every = setup.job.checkpoint.every
    announce = setup.process.rank == 0 and not quiet
    with (
        StopRequest(setup.folder if setup.process.rank == 0 else None, announce) as stop,
        open_logs(setup, step, quiet) as logs,
        setup.watchdog as watchdog,
        completed(setup.saver, min(LAST_SAVE, setup.job.mesh.timeout)),
        explain_lost_process(setup.process, watchdog.describe),
        ScheduledCollection(setup.job.train.gc_every) as collection,
    ):
        if step == 0 and not quiet:
            warn_of_growth(setup)
        while step < steps and not stop.agreed(setup.process.device):
            began = perf_counter()
            watchdog.beat(step + 1, "reading data")
            program = setup.layout.program_at(step)
            with setup.context.times.reading():
                batches = read_step(setup.reader)
            watchdog.beat(step + 1, "computing")
            rate = lr_multiplier(setup.job.optim.schedule, step, steps)
            with profiled(setup.job.train.profile, step + 1, setup.folder, setup.process.rank):
                report = train_step(setup.context, batches, program, rate, guard.max_norm)
            step += 1
            setup.clock.stepped()
            if report.skipped and report.grad_norm is not None and announce:
                print(guard.spike_warning(step, report.grad_norm), file=sys.stderr)
            setup.reader.count_tokens(report.tokens_by_source)
            row = metrics(setup, step, program, report, rate, perf_counter() - began)
            if evaluate is not None and (step % setup.job.eval.every == 0 or step == steps):
                row |= evaluate(partial(watchdog.beat, step, "evaluating"))
            logs.write(row)
            eval_loss = row.get("eval_loss")
            if guard.observe(report.grad_norm, setup.reader.last_read):
                watchdog.beat(step, "going back")
                step = saved = go_back(setup, step)
                logs.rewind(step)
            elif every and step % every == 0 and step < steps and not guard.streak:
                watchdog.beat(step, "saving")
                save(setup, step, eval_loss)
                saved = step
            collection.after(step)
        if step != saved:
            watchdog.beat(step, "saving")
            save(setup, step, eval_loss)
        return Outcome(step, steps, step < steps, stop.reason == BY_FILE)


def warn_of_growth(setup: Setup) -> None:
    """Before the first step, print a warning where the gradient of the fast weights explodes over windows. A collective.

    Under ZeRO 3 it is not measured before the first step; metrics.jsonl has it from then on.
    """
    job, program = setup.job, setup.layout.program()
    if job.mesh.zero == 3 or not can_explode(job.sleep, program):
        return
    measured = growth_at_start(setup.context, job.train.seed)
    if measured is not None and measured.explodes and setup.process.rank == 0:
        blocks = looped_blocks(job.sleep, len(job.model.pattern))
        print(f"warning: {measured.message(blocks, job.sleep.max_passes)}", file=sys.stderr, flush=True)


def open_logs(setup: Setup, step: int, quiet: bool) -> Logs:
    """The logs of this run, on rank 0."""
    steps, rank = setup.layout.steps, setup.process.rank
    return Logs(setup.job.log, setup.folder, setup.flat_config, step, steps, rank, quiet)


def save(setup: Setup, step: int, eval_loss: float | None) -> None:
    """Write a checkpoint of this step, whose loss on held-out data may be known, and delete older ones that are not kept."""
    context = setup.context
    setup.saver.save(
        step,
        {"data": setup.reader.state_dict(), "guard": setup.guard.state_dict()},
        {"random": checkpoint.random_state()},
        eval_loss,
        [] if context.lanes is None else context.lanes.slices(context.axes),
    )


@contextmanager
def completed(saver: checkpoint.Saver, last_save: float) -> Iterator[None]:
    """Waits at the end of the block, however it ends, until the last checkpoint is written; `last_save` seconds without a process."""
    patience = None
    try:
        yield
    except ProcessLost:
        patience = last_save
        raise
    finally:
        saver.wait(patience)
