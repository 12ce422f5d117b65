"""The training loop: next batch, forward, backward, step, log, maybe save, maybe stop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.engine.lr_schedule import lr_multiplier
from sleeptrain.errors import ProcessLost, RunFailed
from sleeptrain.parallel.process import explain_lost_process
from sleeptrain.program import Program
from sleeptrain.run.stop import StopRequest
from sleeptrain.train.growth import can_explode, growth, growth_at_start, looped_blocks
from sleeptrain.train.guard import Guard
from sleeptrain.train.log import Logs
from sleeptrain.train.setup import Setup, resume
from sleeptrain.train.step import StepReport, read_step, train_step
from sleeptrain.train.throughput import mfu, peak_memory, row_flops


@dataclass(frozen=True)
class Outcome:
    """How training ended: the step it stands at, and whether it was stopped by request."""

    step: int
    steps: int
    stopped: bool


Evaluate = Callable[[Callable[[], None]], dict[str, Any]]
"""Measures the model on held-out data: entries of a row of metrics, among them `eval_loss`. A collective, which calls its
argument after every group of micro-batches."""
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
    ):
        if step == 0 and not quiet:
            warn_of_growth(setup)
        while step < steps and not stop.agreed(setup.process.device):
            began, position = perf_counter(), setup.reader.position
            watchdog.beat(step + 1, "reading data")
            program, batches = setup.layout.program_at(step), read_step(setup.reader)
            watchdog.beat(step + 1, "computing")
            rate = lr_multiplier(setup.job.optim.schedule, step, steps)
            report = train_step(setup.context, batches, program, rate, guard.max_norm)
            step += 1
            if report.skipped and report.grad_norm is not None and announce:
                print(spike_warning(guard, step, report.grad_norm), file=sys.stderr)
            row = metrics(setup, step, program, report, rate, perf_counter() - began)
            if evaluate is not None and (step % setup.job.eval.every == 0 or step == steps):
                row |= evaluate(partial(watchdog.beat, step, "evaluating"))
            logs.write(row)
            eval_loss = row.get("eval_loss")
            if guard.observe(report.grad_norm, position):
                watchdog.beat(step, "going back")
                step = saved = go_back(setup, step)
                logs.rewind(step)
            elif every and step % every == 0 and step < steps and not guard.streak:
                watchdog.beat(step, "saving")
                save(setup, step, eval_loss)
                saved = step
        if step != saved:
            watchdog.beat(step, "saving")
            save(setup, step, eval_loss)
        return Outcome(step, steps, stopped=step < steps)


def go_back(setup: Setup, step: int) -> int:
    """Load the last checkpoint and leave out the data of the streak that ended at `step`; the step of the checkpoint. A collective.

    Raises RunFailed where there is no checkpoint, and where the run has gone back as often as it may.
    """
    setup.saver.wait()
    guard, streak = setup.guard, setup.guard.streak
    what = f"step {step}: loss or gradient was not finite {len(streak)} times in a row"
    way_out = (
        f"the weights were not changed by these steps; lower optim.lr = {setup.job.optim.lr}, or look at "
        f"{setup.folder / 'metrics.jsonl'}"
    )
    if guard.rollbacks_left == 0:
        limit = setup.job.train.guard.rollbacks
        raise RunFailed(f"{what}, after going back {limit} times (train.guard.rollbacks); {way_out}")
    left_out = setup.reader.left_out
    found = resume(setup.engine, setup.reader, guard, setup.folder)
    if found is None:
        raise RunFailed(f"{what}, and there is no checkpoint to go back to; {way_out}")
    setup.reader.leave_out([*left_out, *setup.reader.rows_at(streak)])
    guard.streak, guard.rollbacks_left = [], guard.rollbacks_left - 1
    if setup.process.rank == 0:
        rows = f"epoch {streak[0][0]}, from sample {streak[0][1]:,}"
        print(
            f"warning: {what}; going back to step {found[0]}, without the data of these steps ({rows})", file=sys.stderr
        )
    return found[0]


def spike_warning(guard: Guard, step: int, norm: float) -> str:
    """What is said of a step that is skipped because its gradient is large."""
    return (
        f"warning: step {step} is skipped: its gradient norm {norm:.3g} is more than {guard.spike:g} times {guard.median:.3g}, the "
        f"median of the last {len(guard.norms)} steps (train.guard.spike)"
    )


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
    tokens = setup.tokens_at(step)
    setup.saver.save(
        step,
        {"data": setup.reader.state_dict(), "tokens": tokens, "guard": setup.guard.state_dict()},
        {"random": checkpoint.random_state()},
        eval_loss,
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


def metrics(
    setup: Setup, step: int, program: Program, report: StepReport, rate: float, seconds: float
) -> dict[str, Any]:
    """One line of metrics.jsonl. Losses in nats per target; rates per second; FLOPs per second over all processes."""
    job, tokens = setup.job, setup.layout.tokens_per_step
    flops_per_second = row_flops(job.model, program, job.sleep) * job.train.batch / seconds
    return {
        "step": step, "tokens": setup.tokens_at(step), "loss": report.loss, "grad_norm": report.grad_norm, "lr": rate * job.optim.lr,
        "tokens_per_second": tokens / seconds, "passes": program.passes,
        "loss_by_window": report.loss_by_window, "targets": report.targets, "residual": report.residual,
        "state_norm": report.state_norm, "state_gradient": report.state_gradient,
        "state_gradient_growth": growth(report.state_gradient), "skipped": report.skipped, "seconds": seconds,
        "flops_per_second": flops_per_second, "mfu": mfu(flops_per_second, job.train.precision, setup.process.world),
        "memory_bytes": peak_memory(),
        "perplexity": math.exp(min(report.loss, 50.0)) if math.isfinite(report.loss) else None,
    }  # fmt: skip
