"""The learning rate of a step, as a fraction of the full rate: a pure function of the step, so resuming needs no state."""

from __future__ import annotations

import math

from sleeptrain.engine.config import LRSchedule


def lr_multiplier(schedule: LRSchedule, step: int, steps: int) -> float:
    """What to multiply every full learning rate with at update number `step`, counted from 0, of `steps` in all.

    Warm-up gives (step + 1) / warmup, so the first update is not wasted and update `warmup - 1` has the full rate. Then
    `cosine` falls along half a cosine and `wsd` stays, then falls in a straight line over the last `decay` of the run
    (Hu et al. 2024, MiniCPM); both would reach `floor` at update `steps`, one past the last. Past the end: `floor`.
    """
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        start = min(schedule.warmup, steps)
    else:
        start = max(schedule.warmup, steps - max(1, round(schedule.decay * steps)))
    if step < start:
        return 1.0
    done = 1.0 if step >= steps else (step - start) / (steps - start)
    shape = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1.0 - done
    return schedule.floor + (1.0 - schedule.floor) * shape
