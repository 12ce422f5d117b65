"""The metrics of a step: one line of metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

from sleeptrain.program import Program
from sleeptrain.train.growth import growth
from sleeptrain.train.setup import Setup
from sleeptrain.train.step import StepReport
from sleeptrain.train.throughput import model_flops, peak_memory, recomputed_flops, utilisation


def metrics(
    setup: Setup, step: int, program: Program, report: StepReport, rate: float, seconds: float
) -> dict[str, Any]:
    """One line of metrics.jsonl. Losses in nats per target; rates per second; FLOPs per second over all processes.

    Tokens are real ones: `tokens` are those of the run so far, and `padding` is the share of this step's tokens that are not real. FLOPs
    are those of the tokens that a pass reads, without padding and earlier documents of a window in passes 2..N (`work_of_rows`). MFU
    leaves recompute out, HFU counts it. The loss by source is there where there are several; rows, tokens and epochs by source are
    those of the run so far.
    """
    job, layout, names, seen = setup.job, setup.layout, setup.reader.names, setup.reader.seen()
    real = sum(report.tokens_by_source)
    flops, recomputed = (count(layout, program, report.work) / seconds for count in (model_flops, recomputed_flops))
    mfu, hfu = (utilisation(rate, job.train.precision, layout.world) for rate in (flops, flops + recomputed))
    row = {
        "step": step, "tokens": sum(seen["tokens_by_source"].values()), "loss": report.loss, "grad_norm": report.grad_norm, "lr": rate * job.optim.lr,
        "tokens_per_second": real / seconds, "padding": 1 - real / layout.tokens_per_step, "passes": program.passes,
        "loss_by_window": report.loss_by_window, "targets": report.targets, "residual": report.residual,
        "state_norm": report.state_norm, "state_gradient": report.state_gradient,
        "state_gradient_growth": growth(report.state_gradient), "skipped": report.skipped, "seconds": seconds,
        "flops_per_second": flops, "mfu": mfu, "hfu": hfu,
        "memory_bytes": peak_memory(), "save_seconds": setup.saver.seconds,
        "perplexity": math.exp(min(report.loss, 50.0)) if math.isfinite(report.loss) else None,
    }  # fmt: skip
    losses = {"loss_by_source": dict(zip(names, report.loss_by_source, strict=True))} if len(names) > 1 else {}
    return row | losses | seen | setup.context.times.report(step)
