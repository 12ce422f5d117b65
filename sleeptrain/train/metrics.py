"""The metrics of a step: one line of metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

from sleeptrain.program import Program
from sleeptrain.train.growth import growth
from sleeptrain.train.setup import Setup
from sleeptrain.train.step import StepReport
from sleeptrain.train.throughput import mfu, peak_memory, row_flops


def metrics(
    setup: Setup, step: int, program: Program, report: StepReport, rate: float, seconds: float
) -> dict[str, Any]:
    """One line of metrics.jsonl. Losses in nats per target; rates per second; FLOPs per second over all processes.

    `tokens` are all tokens of the run so far, and `padding` is their share in this step that is padding; `tokens_per_second` are real
    tokens. The loss by source is there where there are several; rows, real tokens and epochs by source are those of the run so far.
    """
    job, tokens, names = setup.job, setup.layout.tokens_per_step, setup.reader.names
    real = sum(report.tokens_by_source)
    flops_per_second = row_flops(job.model, program, job.sleep) * job.train.batch / seconds
    row = {
        "step": step, "tokens": setup.tokens_at(step), "loss": report.loss, "grad_norm": report.grad_norm, "lr": rate * job.optim.lr,
        "tokens_per_second": real / seconds, "padding": 1 - real / tokens, "passes": program.passes,
        "loss_by_window": report.loss_by_window, "targets": report.targets, "residual": report.residual,
        "state_norm": report.state_norm, "state_gradient": report.state_gradient,
        "state_gradient_growth": growth(report.state_gradient), "skipped": report.skipped, "seconds": seconds,
        "flops_per_second": flops_per_second, "mfu": mfu(flops_per_second, job.train.precision, setup.process.world),
        "memory_bytes": peak_memory(),
        "perplexity": math.exp(min(report.loss, 50.0)) if math.isfinite(report.loss) else None,
    }  # fmt: skip
    losses = {"loss_by_source": dict(zip(names, report.loss_by_source, strict=True))} if len(names) > 1 else {}
    return row | losses | setup.reader.seen()
