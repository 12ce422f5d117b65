"""The training loop: next batch, forward, backward, step, log, maybe save, maybe stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sleeptrain import checkpoint
from sleeptrain.config import RunFailed
from sleeptrain.engine.lr_schedule import lr_multiplier
from sleeptrain.program import Program, compile
from sleeptrain.run.stop import StopRequest
from sleeptrain.train.log import Logs
from sleeptrain.train.setup import Setup
from sleeptrain.train.step import StepReport, read_step, train_step

SKIPS_IN_A_ROW = 3
"""So many unsafe steps one after another mean that more data will not help."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: the step it stands at, and the signal that stopped it, if one did."""

    step: int
    steps: int
    signal: int | None


def train(setup: Setup, quiet: bool = False) -> Outcome:
    """Train from where the run stands to its last step, or until it is asked to stop. Saves when it ends, however.

    Raises RunFailed, on all ranks, when losses or gradients stay non-finite.
    """
    step, steps, skips = setup.step, setup.steps, 0
    programs = programs_by_step(setup)
    with StopRequest(tell=setup.process.rank == 0 and not quiet) as stop, open_logs(setup, step, steps, quiet) as logs:
        while step < steps and not stop.agreed(setup.process.device):
            began = perf_counter()
            program = programs(step)
            batches, rate = read_step(setup.reader), lr_multiplier(setup.job.optim.schedule, step, steps)
            report = train_step(
                setup.engine, batches, program, setup.job.sleep, setup.manifest.windows, setup.manifest.pad,
                setup.forward, setup.split.group, setup.axes, rate,
            )  # fmt: skip
            step += 1
            skips = skips + 1 if report.skipped else 0
            logs.write(row(setup, step, program, report, rate, perf_counter() - began))
            if skips == SKIPS_IN_A_ROW:
                raise RunFailed(
                    f"step {step}: loss or gradient was not finite {skips} times in a row; no weight was changed by them; "
                    f"lower optim.lr = {setup.job.optim.lr}, or look at {setup.folder / 'metrics.jsonl'}"
                )
            if setup.job.checkpoint.every and step % setup.job.checkpoint.every == 0 and step < steps:
                save(setup, step)
        if step > setup.step or checkpoint.latest(setup.folder / "checkpoints") is None:
            save(setup, step)
        return Outcome(step, steps, stop.signal if step < steps else None)


def open_logs(setup: Setup, step: int, steps: int, quiet: bool) -> Logs:
    """The logs of this run, on rank 0."""
    return Logs(setup.job.log, setup.folder, setup.flat_config, step, steps, setup.process.rank, quiet)


def programs_by_step(setup: Setup) -> Callable[[int], Program]:
    """Programs by step, each number of passes compiled once."""
    job, compiled = setup.job, dict[int, Program]()

    def program(step: int) -> Program:
        passes = job.sleep.passes_at(step, job.train.seed)
        if passes not in compiled:
            compiled[passes] = compile(job.sleep, setup.manifest.windows, len(job.model.pattern), passes)
        return compiled[passes]

    return program


def save(setup: Setup, step: int) -> None:
    """A checkpoint of this step; older ones beyond `checkpoint.keep` go."""
    state = {"step": step, "data": setup.reader.state_dict(), "random": checkpoint.random_state()}
    job = setup.job
    checkpoint.save(setup.engine, setup.folder / "checkpoints", step, state, mesh=job.mesh, keep=job.checkpoint.keep)


def row(setup: Setup, step: int, program: Program, report: StepReport, rate: float, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl. Losses in nats a target, rates a second, flops per second over all processes."""
    tokens = setup.job.train.batch * setup.manifest.length
    work = setup.flops(program) * setup.job.train.batch
    return {
        "step": step, "tokens": step * tokens, "loss": report.loss, "grad_norm": report.grad_norm, "lr": rate * setup.job.optim.lr,
        "tokens_per_second": tokens / seconds, "passes": max(p.of for ops, _ in program.by_window() for p in ops),
        "loss_by_window": report.loss_by_window, "targets": report.targets, "residual": report.residual,
        "state_norm": report.state_norm, "skipped": report.skipped, "seconds": seconds,
        "flops_per_second": work / seconds, "mfu": setup.mfu(work / seconds), "memory_bytes": setup.memory(),
        "perplexity": math.exp(min(report.loss, 50.0)) if math.isfinite(report.loss) else None,
    }  # fmt: skip
